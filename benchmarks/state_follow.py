"""How soon a new gateway is ready when `jobs.state` holds 100,000 jobs, and what memory it takes.

    python -m benchmarks.state_follow [--bus valkey kafka] [--jobs 100000]

A real gateway process with an empty database, on a real bus. Reported, not asserted.
"""

from __future__ import annotations

import argparse
import re
from datetime import UTC, datetime
from pathlib import Path

import httpx

from benchmarks.buses import BUSES, bus_url
from benchmarks.gateways import KEY, gateway
from shared import bus
from shared.contracts.artifacts import ArtifactKind
from shared.contracts.jobs import JobSpec, JobState, JobStatus
from shared.contracts.topics import JOBS_STATE

IN_FLIGHT = 2000


def fill(url: str, jobs: int) -> None:
    """Publish the states of so many jobs that have ended."""
    ours = bus.connect(url, "benchmark")
    spec = JobSpec(type="sft", params={"learning_rate": 2e-4, "epochs": 3.0}, output="assistant")
    spec = spec.changed(output_kind=ArtifactKind.adapter)
    now = datetime.now(UTC)
    waiting = []
    for number in range(jobs):
        job_id = f"job-{number:024d}"
        state = JobState(job_id=job_id, version=7, spec=spec, status=JobStatus.succeeded, reason="done", created_at=now)
        waiting.append(ours.publish(JOBS_STATE, job_id, state))
        if len(waiting) == IN_FLIGHT:
            for future in waiting:
                future.result(timeout=60)
            waiting.clear()
    for future in waiting:
        future.result(timeout=60)
    ours.close()


def follow(url: str, jobs: int) -> tuple[float, float]:
    """Seconds from the start of a gateway to its readiness with all of them, and the most memory it took, in MB."""
    with gateway(url) as new:
        found = httpx.get(f"{new.url}/v1/jobs/job-{jobs - 1:024d}", headers=KEY)
        if jobs and found.status_code != 200:
            raise RuntimeError(f"the gateway is ready and does not know the last job: {found.text}")
        return new.ready_s, most_memory_mb(new.pid)


def most_memory_mb(pid: int) -> float:
    """The process's resident memory at its peak."""
    (found,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found) * 1024 / 1e6


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--bus", choices=BUSES, nargs="+", default=BUSES)
    options.add_argument("--jobs", type=int, default=100_000)
    asked = options.parse_args()
    for name in asked.bus:
        with bus_url(name) as url:
            for jobs in (0, asked.jobs):
                fill(url, jobs)
                ready_s, memory_mb = follow(url, jobs)
                print(
                    f"{name}: a new gateway is ready with {jobs} jobs after {ready_s:.1f} s, at most {memory_mb:.0f} MB"
                )


if __name__ == "__main__":
    main()
