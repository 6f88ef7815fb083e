"""How long a submission takes, and how soon its child process runs.

    python -m benchmarks.job_start [--jobs N]

Starts the whole system in a folder of its own and submits probes one after the other. Reported, not asserted:
The promise is p95 ≤ 100 ms from the 202 to the child's start, on an idle machine.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from statistics import median, quantiles

from llmos.client import LLMOS
from tests.ports import free_port


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--jobs", type=int, default=40)
    jobs = options.parse_args().jobs
    with tempfile.TemporaryDirectory(prefix="llmos-bench-", dir="/tmp") as folder:
        llmos = [sys.executable, "-m", "llmos", "--home", folder]
        subprocess.run([*llmos, "up", "--detach", "--port", str(free_port())], check=True)
        try:
            with LLMOS(home=Path(folder)) as client:
                measure(client, jobs)
        finally:
            subprocess.run([*llmos, "down"], check=True)


def measure(client: LLMOS, jobs: int) -> None:
    """Submit, wait, submit: each job finds an idle system. The first is a warm-up."""
    posts, starts = [], []
    for number in range(jobs + 1):
        begun = time.time()
        job = client.submit_job("probe", params={"steps": 1})
        accepted = time.time()
        client.wait_job(job["id"])
        if number:
            posts.append(accepted - begun)
            starts.append(started_at(client, job["id"]) - accepted)
    report("POST /v1/jobs", posts)
    report("202 → child process started", starts)


def started_at(client: LLMOS, job_id: str) -> float:
    """When the trainer announced the child, by this machine's clock."""
    events = client.job_events(job_id, limit=100)["data"]
    started = next(event for event in events if event["type"] == "AttemptStarted")
    return datetime.fromisoformat(started["created_at"]).timestamp()


def report(name: str, seconds: list[float]) -> None:
    p95 = quantiles(seconds, n=20)[-1]
    print(f"{name}: p50 {1e3 * median(seconds):.1f} ms, p95 {1e3 * p95:.1f} ms over {len(seconds)}")


if __name__ == "__main__":
    main()
