"""The node's end of the doorbell: a Celery worker whose one task says "look now".

It may be deaf for as long as it likes: the agent follows the wishes on the bus as well.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from shared.outage import Outage

log = logging.getLogger(__name__)

CONSUMER, CONNECTION = (logging.getLogger(f"celery.worker.consumer.{name}") for name in ("consumer", "connection"))
"""Where Celery says that it lost its server, and that it found it."""

PAUSE_S = 2.0
STOP_TIMEOUT_S = 2.0


class _Connecting(logging.Filter):
    """Takes what Celery says of its connection, two lines a try, and tells the outage of it."""

    def __init__(self, outage: Outage) -> None:
        super().__init__()
        self._outage = outage

    def filter(self, record: logging.LogRecord) -> bool:
        from celery.worker.consumer.consumer import CONNECTION_ERROR, CONNECTION_RETRY

        said = record.args if isinstance(record.args, tuple) else ()
        if record.name == CONNECTION.name:
            self._outage.ended()
        elif record.msg == CONNECTION_ERROR or CONNECTION_RETRY in said:
            self._outage.began(next((it for it in said if isinstance(it, Exception)), ConnectionError("no answer")))
        else:
            return True
        return False


class DoorbellWorker:
    """Runs until stopped; whatever ends the worker in between, another is made. One per process."""

    def __init__(self, redis_url: str, node: str, look: Callable[[], None]) -> None:
        self._redis_url = redis_url
        self._node = node
        self._look = look
        self._stopping = threading.Event()
        self._outage = Outage(log, "the doorbell")
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
        connecting = _Connecting(self._outage)
        CONNECTION.setLevel(logging.INFO)  # whatever is logged: that line ends the outage
        for logger in (CONSUMER, CONNECTION):
            logger.addFilter(connecting)
        try:
            while not self._stopping.is_set():
                try:
                    self._listen()
                except Exception as error:  # a doorbell is a hint: nothing that happens to it may end the service
                    self._outage.began(error)
                self._stopping.wait(PAUSE_S)
        finally:
            for logger in (CONSUMER, CONNECTION):
                logger.removeFilter(connecting)

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
