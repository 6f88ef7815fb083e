"""Doorbells over Celery. The only thing that rides on it is "look now": truth is on the bus."""

from __future__ import annotations

import logging
import queue
import threading
from urllib.parse import parse_qs, urlsplit

from celery import Celery
from kombu import Exchange, Queue

from shared import valkey
from shared.outage import Outage
from shared.settings import naming

log = logging.getLogger("llmos.doorbell")

TASK = "llmos.look"
"""Its arguments: job id, attempt."""
WAITING_RINGS = 1000
TIMEOUT_S = 2.0


def queue_name(node: str) -> str:
    """The queue that a node's worker listens to."""
    return f"node.{node}"


def bell(node: str) -> Queue:
    """The queue as a worker listens to it: without acknowledgements, since one that met a dying server was seen to hide
    its loss and to leave the worker connected and deaf."""
    name = queue_name(node)
    return Queue(name, Exchange(name), routing_key=name, no_ack=True)


@naming("LLMOS_REDIS_URL")
def broker_url(redis_url: str) -> str:
    """`redis_url` in the form that Celery takes: `unix:///path?db=1` is `redis+socket:///path?virtual_host=1`."""
    url = valkey.redis_url(redis_url)
    if not url.startswith("unix://"):
        return url
    parts = urlsplit(url)
    database = parse_qs(parts.query).get("db", ["0"])[0]
    return f"redis+socket://{parts.path}?virtual_host={database}"


def make_celery(redis_url: str) -> Celery:
    """The application that both ends share; connects when first used.

    A task counts as done when it is taken: a lost or doubled doorbell does no harm, and late acknowledgement under
    kill -9 was seen to lose and to double work.
    """
    app = Celery("llmos", broker=broker_url(redis_url), set_as_current=False)
    app.conf.update(
        task_acks_late=False,
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        task_serializer="json",
        accept_content=["json"],
        task_default_delivery_mode="transient",
        worker_pool="threads",
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_send_task_events=False,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={"socket_timeout": 5.0, "socket_connect_timeout": TIMEOUT_S, "max_retries": 0},
        enable_utc=True,
    )
    return app


class CeleryDoorbell:
    """Doorbell over Celery. Rings wait in memory for a thread that sends them; past `WAITING_RINGS` they are dropped.

    `dropped` counts what was not sent. It does no harm: workers follow the bus as well.
    """

    def __init__(self, redis_url: str) -> None:
        self.dropped = 0
        self._app = make_celery(redis_url)
        self._rings: queue.Queue[tuple[str, str, int] | None] = queue.Queue(WAITING_RINGS)
        self._outage = Outage(log, "doorbells")
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def ring(self, node: str, job_id: str, attempt: int) -> None:
        """Never blocks, never raises."""
        with self._lock:
            if self._thread is None and not self._closed.is_set():
                self._thread = threading.Thread(target=self._run, name="doorbell", daemon=True)
                self._thread.start()
        try:
            self._rings.put_nowait((node, job_id, attempt))
        except queue.Full:
            self._drop()

    def close(self) -> None:
        """Let go of the server; what still waits is dropped."""
        self._closed.set()
        try:
            self._rings.put_nowait(None)
        except queue.Full:
            log.debug("the thread is busy with rings, and sees the end after the one at hand")
        if self._thread is not None:
            self._thread.join()
        self._app.close()

    def _run(self) -> None:
        while (ring := self._rings.get()) is not None and not self._closed.is_set():
            node, job_id, attempt = ring
            try:
                self._app.send_task(
                    TASK, (job_id, attempt), queue=queue_name(node), retry=False, ignore_result=True, expires=60
                )
            except Exception as error:  # whatever Celery, kombu or redis-py raise: the ring is lost, which is allowed
                self._outage.began(error)
                self._drop()
            else:
                self._outage.ended()

    def _drop(self) -> None:
        self.dropped += 1
        if self.dropped == 1 or self.dropped % 1000 == 0:
            log.warning("%s doorbells were dropped so far; nodes find their work on the bus", self.dropped)
