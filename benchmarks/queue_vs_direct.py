"""Promise: tokens/s through the queue ÷ those of vLLM's own server ≥ 0.95 on 2 cores; the first token ≤ 5 ms later.

Both serve the same model in the same run. Load goes to one and then the other, in turns, and a ratio is of two
neighbouring measurements; what is printed is the median of the rounds. `python -m benchmarks.queue_vs_direct [--quick]`
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.serving_load import Load, Target, measure
from benchmarks.serving_model import make_model
from benchmarks.serving_paths import direct, queued, replica_spec

STREAMS = (1, 4, 16, 64)


@dataclass(frozen=True)
class Row:
    """One number of streams. Times in milliseconds; `ratio` and `later_ms` are medians over the rounds."""

    streams: int
    direct_tokens_per_s: float
    queue_tokens_per_s: float
    ratio: float
    direct_first_p50: float
    queue_first_p50: float
    later_ms: float
    direct_first_p95: float
    queue_first_p95: float


async def compare(straight: Target, queue: Target, streams: int, rounds: int, tokens: int) -> Row:
    """Both under the same load, in turns; who begins changes from round to round."""
    requests = max(16, 4 * streams)
    pairs: list[tuple[Load, Load]] = []
    for number in range(rounds):
        order = (straight, queue) if number % 2 == 0 else (queue, straight)
        loads = {target.url: await measure(target, streams, requests, tokens) for target in order}
        pairs.append((loads[straight.url], loads[queue.url]))
    return summary(streams, pairs)


def summary(streams: int, pairs: Sequence[tuple[Load, Load]]) -> Row:
    ours, theirs = [pair[1] for pair in pairs], [pair[0] for pair in pairs]
    return Row(
        streams=streams,
        direct_tokens_per_s=statistics.median(load.tokens_per_s for load in theirs),
        queue_tokens_per_s=statistics.median(load.tokens_per_s for load in ours),
        ratio=statistics.median(queue.tokens_per_s / straight.tokens_per_s for straight, queue in pairs),
        direct_first_p50=statistics.median(load.percentile(0.5) for load in theirs),
        queue_first_p50=statistics.median(load.percentile(0.5) for load in ours),
        later_ms=statistics.median(queue.percentile(0.5) - straight.percentile(0.5) for straight, queue in pairs),
        direct_first_p95=statistics.median(load.percentile(0.95) for load in theirs),
        queue_first_p95=statistics.median(load.percentile(0.95) for load in ours),
    )


def show(row: Row) -> None:
    print(
        f"{row.streams:3d} streams  tokens/s {row.direct_tokens_per_s:6.0f} direct, {row.queue_tokens_per_s:6.0f} queue"
        f"  ratio {row.ratio:.3f}  first token p50 {row.direct_first_p50:6.1f} → {row.queue_first_p50:6.1f} ms"
        f" ({row.later_ms:+.1f})  p95 {row.direct_first_p95:6.1f} → {row.queue_first_p95:6.1f} ms",
        flush=True,
    )


async def run(arguments: argparse.Namespace) -> list[Row]:
    rounds = arguments.rounds or (3 if arguments.quick else 7)
    tokens = 32 if arguments.quick else 64
    with tempfile.TemporaryDirectory(prefix="llmos-bench-") as name:
        home = Path(name)
        model = arguments.model or await asyncio.to_thread(make_model, home / "model")
        spec = replica_spec(model, home / "cache")
        # One after the other: loading is what takes the memory.
        async with direct(spec, home) as straight, queued(spec, home, arguments.requests) as queue:
            for target in (straight, queue):
                await measure(target, streams=16, requests=32, tokens=tokens)
            rows = []
            for streams in arguments.streams:
                rows.append(await compare(straight, queue, streams, rounds, tokens))
                show(rows[-1])
            return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three rounds of short answers")
    parser.add_argument("--rounds", type=int, help="measurements of each side per number of streams")
    parser.add_argument("--streams", type=int, nargs="+", default=STREAMS)
    parser.add_argument("--requests", choices=("valkey", "kafka"), default="valkey", help="what carries the requests")
    parser.add_argument("--model", type=Path, help="a model folder; by default a tiny Llama is made")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    arguments = parser.parse_args()
    rows = asyncio.run(run(arguments))
    print(f"queue ÷ direct, tokens/s: worst {min(row.ratio for row in rows):.3f} (promise ≥ 0.95)")
    print(f"first token later by: worst {max(row.later_ms for row in rows):.1f} ms (promise ≤ 5 ms)")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2))


if __name__ == "__main__":
    main()
