"""How many jobs per second one gateway accepts: whole POSTs, each durable before its 202, over Valkey and over Kafka.

A real scheduler takes the jobs over and shows them, on the same processors; there is no node that would run them.

    python -m benchmarks.submit_rate [--seconds 5] [--rounds 3]

Both gateways run side by side on real servers and are asked in turns; the ratio is the median of the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import httpx

from benchmarks.buses import BUSES, bus_url
from benchmarks.gateways import KEY, gateway, scheduler

PATIENCE_S = 300
JOB = {"type": "probe", "params": {"steps": 3}, "name": "benchmark"}


def posts_per_s(address: str, callers: int, seconds: float) -> tuple[float, float]:
    """The rate, and the median of a POST in milliseconds."""
    ends = time.perf_counter() + seconds

    def call() -> list[float]:
        times = []
        with httpx.Client(base_url=address, headers=KEY, timeout=30) as client:
            while (begun := time.perf_counter()) < ends:
                client.post("/v1/jobs", json=JOB).raise_for_status()
                times.append(time.perf_counter() - begun)
        return times

    begun = time.perf_counter()
    with ThreadPoolExecutor(callers) as threads:
        times = [one for future in [threads.submit(call) for _ in range(callers)] for one in future.result()]
    return len(times) / (time.perf_counter() - begun), statistics.median(times) * 1000


def measure(address: str, callers: int, seconds: float) -> tuple[float, float]:
    """The same, and then the scheduler has taken over what there is, so that the other side has the machine."""
    found = posts_per_s(address, callers, seconds)
    with httpx.Client(base_url=address, headers=KEY, timeout=30) as client:
        job = client.post("/v1/jobs", json=JOB).raise_for_status().json()["id"]
        deadline = time.monotonic() + PATIENCE_S
        while client.get(f"/v1/jobs/{job}").json()["version"] == 0:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the scheduler did not take over {job} in {PATIENCE_S} s")
            time.sleep(0.05)
    return found


@contextmanager
def system(name: str) -> Iterator[str]:
    """A gateway and a scheduler on a bus of that kind; the gateway's address."""
    with bus_url(name) as url, gateway(url) as asked, scheduler(url):
        yield asked.url


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=float, default=5)
    options.add_argument("--rounds", type=int, default=3)
    asked = options.parse_args()
    with ExitStack() as stack:
        sides = {name: stack.enter_context(system(name)) for name in BUSES}
        for callers in (1, 8):
            rounds = [
                {name: measure(address, callers, asked.seconds) for name, address in sides.items()}
                for _ in range(asked.rounds)
            ]
            rates = {name: statistics.median(one[name][0] for one in rounds) for name in BUSES}
            p50s = {name: statistics.median(one[name][1] for one in rounds) for name in BUSES}
            ratio = statistics.median(one["kafka"][0] / one["valkey"][0] for one in rounds)
            told = ", ".join(f"{name} {rates[name]:.0f} jobs/s (p50 {p50s[name]:.1f} ms)" for name in BUSES)
            print(f"{callers} callers: {told}; kafka ÷ valkey {ratio:.2f}")


if __name__ == "__main__":
    main()
