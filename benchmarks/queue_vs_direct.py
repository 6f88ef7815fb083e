"""Promise: tokens/s through the queue ÷ those of vLLM's own server ≥ 0.95 on 2 cores; the first token ≤ 5 ms later.

All sides serve the same model in the same run. Load goes to one after the other, in turns, and a ratio is of two
neighbouring measurements; what is printed is the median of the rounds.
`python -m benchmarks.queue_vs_direct [--requests valkey kafka] [--quick]`
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

from benchmarks.serving_load import Load, Target, measure
from benchmarks.serving_model import make_model
from benchmarks.serving_paths import direct, queued, replica_spec

CARRIERS = ("valkey", "kafka")
STREAMS = (1, 4, 16, 64)
DIRECT = "direct"


@dataclass(frozen=True)
class Row:
    """One side against another at one number of streams. Times in milliseconds; all are medians over the rounds."""

    streams: int
    side: str
    other: str
    tokens_per_s: float
    other_tokens_per_s: float
    ratio: float
    first_p50: float
    other_first_p50: float
    later_ms: float
    first_p95: float
    other_first_p95: float


async def compare(sides: dict[str, Target], streams: int, rounds: int, tokens: int) -> list[Row]:
    """All under the same load, in turns; who begins changes from round to round."""
    requests = max(16, 4 * streams)
    names = list(sides)
    measured: list[dict[str, Load]] = []
    for number in range(rounds):
        first = number % len(names)
        order = names[first:] + names[:first]
        measured.append({name: await measure(sides[name], streams, requests, tokens) for name in order})
    return [
        summary(streams, side, other, [(loads[side], loads[other]) for loads in measured])
        for other, side in combinations(names, 2)
    ]


def summary(streams: int, side: str, other: str, pairs: Sequence[tuple[Load, Load]]) -> Row:
    ours, theirs = zip(*pairs, strict=True)
    return Row(
        streams=streams,
        side=side,
        other=other,
        tokens_per_s=statistics.median(load.tokens_per_s for load in ours),
        other_tokens_per_s=statistics.median(load.tokens_per_s for load in theirs),
        ratio=statistics.median(our.tokens_per_s / their.tokens_per_s for our, their in pairs),
        first_p50=statistics.median(load.percentile(0.5) for load in ours),
        other_first_p50=statistics.median(load.percentile(0.5) for load in theirs),
        later_ms=statistics.median(our.percentile(0.5) - their.percentile(0.5) for our, their in pairs),
        first_p95=statistics.median(load.percentile(0.95) for load in ours),
        other_first_p95=statistics.median(load.percentile(0.95) for load in theirs),
    )


def show(row: Row) -> None:
    print(
        f"{row.streams:3d} streams  {row.side} ÷ {row.other}"
        f"  tokens/s {row.tokens_per_s:.0f} ÷ {row.other_tokens_per_s:.0f} = {row.ratio:.3f}"
        f"  first token p50 {row.first_p50:.1f} after {row.other_first_p50:.1f} ms ({row.later_ms:+.1f})"
        f"  p95 {row.first_p95:.1f} after {row.other_first_p95:.1f} ms",
        flush=True,
    )


async def run(arguments: argparse.Namespace) -> list[Row]:
    rounds = arguments.rounds or (3 if arguments.quick else 7)
    tokens = 32 if arguments.quick else 64
    with tempfile.TemporaryDirectory(prefix="llmos-bench-") as name:
        home = Path(name)
        model = arguments.model or await asyncio.to_thread(make_model, home / "model")
        spec = replica_spec(model, home / "cache")
        async with AsyncExitStack() as stack:
            # One after the other: loading is what takes the memory.
            sides = {DIRECT: await stack.enter_async_context(direct(spec, home))}
            for carrier in arguments.requests:
                sides[carrier] = await stack.enter_async_context(queued(spec, home, carrier))
            for target in sides.values():
                await measure(target, streams=16, requests=32, tokens=tokens)
            rows = []
            for streams in arguments.streams:
                for row in await compare(sides, streams, rounds, tokens):
                    show(row)
                    rows.append(row)
            return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three rounds of short answers")
    parser.add_argument("--rounds", type=int, help="measurements of each side per number of streams")
    parser.add_argument("--streams", type=int, nargs="+", default=STREAMS)
    parser.add_argument("--requests", choices=CARRIERS, nargs="+", default=CARRIERS, help="what carries the requests")
    parser.add_argument("--model", type=Path, help="a model folder; by default a tiny Llama is made")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    arguments = parser.parse_args()
    rows = asyncio.run(run(arguments))
    for carrier in arguments.requests:
        against = [row for row in rows if (row.side, row.other) == (carrier, DIRECT)]
        print(f"{carrier} ÷ direct, tokens/s: worst {min(row.ratio for row in against):.3f} (promise ≥ 0.95)")
        print(f"{carrier}, first token later by: worst {max(row.later_ms for row in against):.1f} ms (promise ≤ 5 ms)")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2))


if __name__ == "__main__":
    main()
