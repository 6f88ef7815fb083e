"""How many rows go into one step when `batch_size` is `auto`.

Measured with SmolLM2-135M and LoRA on two cores (AMX): fp32 reaches its speed at 256 tokens a step (166 tokens/s, and
162 at 1024), bf16 at 1024 (331 tokens/s against 200 at 256). More than that only takes memory and leaves fewer updates,
so a processor gets that much and no more. An accelerator gets what fits, by estimate; where the estimate was too bold,
training goes on from the last checkpoint in halves (`training.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

ENOUGH_CPU_TOKENS = {"float32": 512, "bfloat16": 1024}
ENOUGH_GPU_TOKENS = 65_536
FEWEST_STEPS = 30
"""A run has at least so many optimizer steps where its data allows: with fewer, few samples teach nothing."""
MEMORY_SHARE = 0.8
"""Of the free memory; the rest is for the caching of the allocator and what else the process does."""


@dataclass(frozen=True)
class ModelSize:
    """What memory depends on."""

    parameters: int
    trainable: int
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int


@dataclass(frozen=True)
class Machine:
    accelerator: bool
    free_bytes: int


@dataclass(frozen=True)
class BatchSize:
    """`batch_size` rows at a time, `accumulation` times a step; `reason` is a sentence for the log."""

    batch_size: int
    accumulation: int
    reason: str
    checkpointing: bool = False
    """Compute activations twice instead of keeping them: the last means against a lack of memory."""

    def smaller(self) -> BatchSize | None:
        """The same step in smaller pieces; None where there are none."""
        if self.batch_size > 1:
            half = self.batch_size // 2
            accumulation = math.ceil(self.batch_size * self.accumulation / half)
            return BatchSize(half, accumulation, f"{half}: memory ran out with {self.batch_size}", self.checkpointing)
        if not self.checkpointing:
            reason = "1, with gradient checkpointing: memory ran out without"
            return BatchSize(1, self.accumulation, reason, checkpointing=True)
        return None


def choose_batch_size(
    wanted: int | str,
    accumulation: int,
    rows: int,
    row_tokens: int,
    epochs: float,
    dtype: str,
    size: ModelSize,
    machine: Machine,
) -> BatchSize:
    """`wanted` itself, or for `auto` the largest power of two within what memory, speed and the data allow."""
    if isinstance(wanted, int):
        return BatchSize(wanted, accumulation, f"{wanted}, as asked")
    enough = ENOUGH_GPU_TOKENS if machine.accelerator else ENOUGH_CPU_TOKENS[dtype]
    limits = {
        "more rows a step are no faster here": math.ceil(enough / row_tokens),
        "more rows do not fit into memory": fitting_rows(size, row_tokens, dtype, machine),
        f"more rows would leave fewer than {FEWEST_STEPS} steps": _rows_a_step(rows, epochs) // accumulation,
    }
    reason, limit = min(limits.items(), key=lambda item: item[1])
    batch = 2 ** int(math.log2(max(1, limit)))
    return BatchSize(batch, accumulation, f"{batch}, of rows of up to {row_tokens} tokens: {reason}")


def _rows_a_step(rows: int, epochs: float) -> int:
    """`epochs` may be infinite, for a run of a given number of steps: then no step is larger than the data."""
    return int(min(rows, rows * epochs / FEWEST_STEPS))


def fitting_rows(size: ModelSize, row_tokens: int, dtype: str, machine: Machine) -> int:
    """Rows whose activations fit beside gradients and AdamW's two moments (fp32), by estimate.

    Per token and layer about 24 hidden widths and 8 of the MLP are kept for the way back (Korthikanti et al. 2022,
    arXiv:2205.05198, without the scores, which are computed in blocks), and three copies of the logits.
    """
    width = 2 if dtype == "bfloat16" else 4
    per_token = size.layers * (24 * size.hidden + 8 * size.intermediate) * width + 3 * 4 * size.vocabulary
    free = machine.free_bytes * MEMORY_SHARE - size.trainable * 12
    return max(0, int(free / (per_token * row_tokens)))
