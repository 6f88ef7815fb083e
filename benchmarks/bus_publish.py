"""Promise: a durable submit (`Bus.publish` of a job) runs at ≥ 0.5 of the rate of a bare Celery enqueue.

Ours goes to a Valkey that syncs its disk before it answers; Celery's goes to one that keeps nothing. Both sides have
the same number of callers, each waiting for its answer before the next; they run in turns, and a ratio is of two
neighbouring measurements. The disk's own sync is shown beside it: a lone caller waits for one sync each time, while
many share one. `python -m benchmarks.bus_publish [--quick]`
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from celery import Celery
from rich.console import Console
from rich.table import Table

from shared import bus
from shared.bus.port import Bus
from shared.contracts.artifacts import ArtifactKind, ArtifactPin
from shared.contracts.jobs import JobSpec, SubmitJob
from shared.contracts.topics import JOBS_COMMANDS
from shared.doorbell.celery import make_celery
from tests.servers import valkey

PROMISE = 0.5


@dataclass(frozen=True)
class Side:
    per_s: float
    p50_ms: float


def a_job() -> SubmitJob:
    """A job of everyday size."""
    data = ArtifactPin(
        name="questions", version=3, kind=ArtifactKind.dataset, manifest_key="manifests/default/q/3.json"
    )
    base = ArtifactPin(name="smollm2", version=1, kind=ArtifactKind.model, manifest_key="manifests/default/s/1.json")
    params = {"learning_rate": 2e-4, "epochs": 3, "batch_size": "auto", "lora": {"rank": 16, "alpha": 32}}
    spec = JobSpec(type="sft", name="nightly", inputs={"base": base, "data": data}, params=params, output="assistant")
    return SubmitJob(job_id="job_0123456789abcdef", spec=spec, traceparent="00-" + "ab" * 16 + "-" + "cd" * 8 + "-01")


def publish(bus: Bus) -> None:
    job = a_job()
    bus.publish(JOBS_COMMANDS, job.job_id, job).result(timeout=30)


def enqueue(app: Celery) -> None:
    job = a_job()
    app.send_task("train", (job.model_dump(mode="json"),), queue="jobs", ignore_result=True)


def measure(call: Callable[[], None], callers: int, duration_s: float) -> Side:
    """`callers` threads, each calling again and again for `duration_s`."""
    ends = time.perf_counter() + duration_s

    def loop() -> list[float]:
        times: list[float] = []
        while (began := time.perf_counter()) < ends:
            call()
            times.append(time.perf_counter() - began)
        return times

    began = time.perf_counter()
    with ThreadPoolExecutor(callers) as threads:
        futures = [threads.submit(loop) for _ in range(callers)]
        times = [one for future in futures for one in future.result()]
    return Side(len(times) / (time.perf_counter() - began), statistics.median(times) * 1000)


def sync_ms(folder: Path) -> float:
    """What one append and sync costs on this disk: no durable publish of a lone caller can be faster."""
    times = []
    with (folder / "probe").open("wb", buffering=0) as file:
        for _ in range(50):
            began = time.perf_counter()
            file.write(b"x" * 1024)
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="Fewer and shorter rounds.")
    quick = options.parse_args().quick
    rounds, duration_s = (3, 1.0) if quick else (7, 3.0)

    table = Table("callers", "publish/s", "p50 ms", "celery/s", "p50 ms", "ratio", title="Bus.publish ÷ Celery enqueue")
    ratios: list[float] = []
    with valkey(durable=True) as durable, valkey(durable=False) as volatile:
        ours = bus.connect(durable.bus_url, "benchmark")
        theirs = make_celery(volatile.unix_url)
        publish(ours)
        enqueue(theirs)
        disk_ms = sync_ms(durable.folder)
        for callers in (1, 8, 64):
            pairs = [
                (
                    measure(partial(publish, ours), callers, duration_s),
                    measure(partial(enqueue, theirs), callers, duration_s),
                )
                for _ in range(rounds)
            ]
            ratio = statistics.median(mine.per_s / celery.per_s for mine, celery in pairs)
            mine, celery = sorted(pairs, key=lambda pair: pair[0].per_s / pair[1].per_s)[len(pairs) // 2]
            table.add_row(
                str(callers), f"{mine.per_s:.0f}", f"{mine.p50_ms:.2f}", f"{celery.per_s:.0f}", f"{celery.p50_ms:.2f}",
                f"{ratio:.2f}",
            )  # fmt: skip
            ratios.append(ratio)
        ours.close()
        theirs.close()
    Console().print(table)
    print(f"one sync of the disk: {disk_ms:.2f} ms")
    worst = min(ratios)
    print(f"bus_publish ratio {worst:.2f} (promise ≥ {PROMISE}, {'kept' if worst >= PROMISE else 'MISSED'})")


if __name__ == "__main__":
    main()
