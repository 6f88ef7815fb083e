"""A Celery worker in a process of its own (Celery keeps state per process): prints `heard JOB ATTEMPT` for every ring.

python -m tests.contract.doorbell_worker REDIS_URL NODE
"""

from __future__ import annotations

import sys

from shared.doorbell.celery import TASK, bell, make_celery


def main(redis_url: str, node: str) -> None:
    app = make_celery(redis_url)

    @app.task(name=TASK)  # type: ignore[untyped-decorator]
    def look(job_id: str, attempt: int) -> None:
        print("heard", job_id, attempt, file=sys.__stdout__, flush=True)

    app.conf.task_queues = [bell(node)]
    app.Worker(pool="threads", concurrency=1, loglevel="WARNING").start()


if __name__ == "__main__":
    main(*sys.argv[1:])
