"""Which samples are held out for validation. The same seed holds out the same ones, on every machine and attempt."""

from __future__ import annotations

import random

SMALLEST_TO_SPLIT = 10
"""With more samples than this, at least one is held out; with as few or fewer, none is worth losing."""


def held_out_count(count: int, fraction: float) -> int:
    """How many of `count` to hold out. At least one stays to train on."""
    if fraction <= 0 or count <= SMALLEST_TO_SPLIT:
        return 0
    return min(max(1, round(count * fraction)), count - 1)


def held_out(count: int, fraction: float, seed: int) -> frozenset[int]:
    """The indices to hold out, drawn by `seed`."""
    return frozenset(random.Random(seed).sample(range(count), held_out_count(count, fraction)))
