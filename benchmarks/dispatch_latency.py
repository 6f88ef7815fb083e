"""How long a free slot stays empty while 1,000 jobs wait: from the end of one run to the order for the next.

    python -m benchmarks.dispatch_latency [--bus valkey|kafka] [--jobs 1000] [--slots 4]

A real scheduler on a real bus and SQLite; the trainer is one that ends every run at once, so that nothing but the
system is measured. Reported, not asserted.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from pathlib import Path
from statistics import quantiles

from benchmarks.buses import BUSES, bus_url
from shared import bus
from shared.bus.port import Bus, Record
from shared.contracts.jobs import DesiredAttempt, Place
from tests.integration.scheduler_world import FakeTrainer, World

PATIENCE_S = 600


class PunctualTrainer(FakeTrainer):
    """Ends each run as soon as it was accepted, and notes when a slot came free and when it was filled again."""

    def __init__(self, bus: Bus, slots: int, jobs: int) -> None:
        self.free_since: list[float] = []
        self.waited_s: list[float] = []
        self.left = jobs
        self.done = threading.Event()
        super().__init__(bus, "n1", slots)

    def start(self, wanted: DesiredAttempt, place: Place, run_id: str = "") -> str:
        now = time.perf_counter()
        with self._lock:
            if self.free_since:
                self.waited_s.append(now - self.free_since.pop(0))
        return super().start(wanted, place, run_id)

    def on_desired(self, record: Record) -> None:
        super().on_desired(record)
        wanted = record.message
        if not isinstance(wanted, DesiredAttempt):
            return
        with self._lock:
            for run_id in [run for run in wanted.accepted.values() if run in self.runs]:
                self.free_since.append(time.perf_counter())
                self.succeed(run_id)
                self.left -= 1
                if not self.left:
                    self.done.set()


def measure(url: str, jobs: int, slots: int) -> list[float]:
    """Seconds that free slots stayed empty, one for each dispatch but the first ones."""
    with tempfile.TemporaryDirectory(prefix="llmos-bench-") as folder:
        world = World(Path(folder), lambda: bus.connect(url, "benchmark"))
        try:
            world.registry()
            world.start_scheduler()
            for _ in range(jobs):
                world.submit()
            trainer = PunctualTrainer(world.own_bus(), slots, jobs)
            if not trainer.done.wait(PATIENCE_S):
                raise TimeoutError(f"{trainer.left} of {jobs} jobs were not run in {PATIENCE_S} s: {world.failures}")
            return trainer.waited_s
        finally:
            world.close()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--bus", choices=BUSES, nargs="+", default=BUSES)
    options.add_argument("--jobs", type=int, default=1000)
    options.add_argument("--slots", type=int, default=4)
    asked = options.parse_args()
    for name in asked.bus:
        with bus_url(name) as url:
            begun = time.perf_counter()
            waited = measure(url, asked.jobs, asked.slots)
            took_s = time.perf_counter() - begun
        cuts = quantiles(waited, n=100)
        p50, p95, p99 = (f"{1e3 * cuts[at - 1]:.0f}" for at in (50, 95, 99))
        print(
            f"{name}: run ended → next ordered: p50 {p50} ms, p95 {p95} ms, p99 {p99} ms over {len(waited)} dispatches "
            f"to {asked.slots} slots; {asked.jobs / took_s:.0f} jobs/s from submission to success"
        )


if __name__ == "__main__":
    main()
