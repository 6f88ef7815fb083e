"""The node's end of the doorbell: a Celery worker whose one task says "look now".

It may be deaf for as long as it likes: the agent follows the wishes on the bus as well.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

log = structlog.get_logger(__name__)

PAUSE_S = 2.0
STOP_TIMEOUT_S = 2.0


class DoorbellWorker:
    """Runs until stopped; whatever ends the worker in between, another is made. One per process."""

    def __init__(self, redis_url: str, node: str, look: Callable[[], None]) -> None:
        self._redis_url = redis_url
        self._node = node
        self._look = look
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="doorbell", daemon=True)

    def start(self) -> None:
        from celery.worker import state

        state.should_stop = None
        self._thread.start()

    def stop(self) -> None:
        """Waits a moment; what is left of the worker ends with the process."""
        from celery.worker import state

        self._stopping.set()
        state.should_stop = 0  # Celery's own flag, looked at between two events
        self._thread.join(STOP_TIMEOUT_S)

    def _work(self) -> None:
        while not self._stopping.is_set():
            try:
                self._listen()
            except Exception as error:  # a doorbell is a hint: nothing that happens to it may end the service
                log.warning("doorbell_broken", reason=str(error))
            self._stopping.wait(PAUSE_S)

    def _listen(self) -> None:
        """One worker, until it is told to stop or breaks. It reconnects for ever on its own."""
        from celery.worker import WorkController

        from shared.doorbell.celery import TASK, bell, make_celery

        app = make_celery(self._redis_url)
        app.conf.task_queues = [bell(self._node)]
        app.task(self._rung, name=TASK, ignore_result=True, shared=False)
        app.set_default()  # the pool's threads look the task up in the process's default application
        app.finalize()
        WorkController(
            app=app,
            hostname=f"trainer@{self._node}",
            concurrency=1,
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
        ).start()

    def _rung(self, *_: object) -> None:
        self._look()
