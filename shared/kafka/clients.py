"""How every adapter reaches Kafka: timeouts, and clients that leave nothing behind when they fail.

A client starts threads, so it is made where it is used, after any fork. The library tries again on its own, and logs
each try: what matters of that reaches the adapters as errors, so only its worst is shown.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

import google_crc32c
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.errors import KafkaError, KafkaTimeoutError, SaslAuthenticationFailedError
from kafka.net.compat import KafkaNetClient
from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport
from kafka.producer.transaction_manager import TransactionState
from kafka.record.util import calc_crc32c
from kafka.structs import MemberState

from shared.kafka.address import Address
from shared.kafka.trouble import NoAnswer

log = logging.getLogger("llmos.kafka")

REQUEST_TIMEOUT_MS = 5000
BOOTSTRAP_TIMEOUT_MS = 2000
CLOSE_S = 1.0
FETCH_WAIT_MS = 500
"""How long the server holds a read that finds nothing. It answers at the first byte, so this costs no time, only
an idle consumer's processor: 4 % of a core at 50 ms, 0.6 % at 500 ms."""

logging.getLogger("kafka").setLevel(logging.CRITICAL)
# Its own checksum is Python, and takes 0.4 s per MB; the fast one that it looks for is under the LGPL.
calc_crc32c.__defaults__ = (lambda view: google_crc32c.value(bytes(view)),)


def _read_last_words(transport: type[KafkaTCPTransport]) -> None:
    """Let the connections hear what a server says just before it hangs up, as of a wrong password.

    The library drops what it read where it finds the end in the same look; left there, the end is found by the next.
    """
    read = transport._sock_recv  # noqa: SLF001 - there is no other way to reach it

    def read_then_end(self: KafkaTCPTransport) -> tuple[bytes, Exception | None]:
        words, error = read(self)
        return words, None if words else error

    transport._sock_recv = read_then_end  # noqa: SLF001


_read_last_words(KafkaTCPTransport)
_read_last_words(KafkaSSLTransport)


class Refused(KafkaError):  # type: ignore[misc]
    """The servers answer, and do not take the user and the password, or the user lacks a right: trying again does not
    help."""

    def __str__(self) -> str:
        return str(self.args[0])


def producer(url: str, client_id: str, **options: Any) -> KafkaProducer:
    """A producer that writes each message once and in order. Raises KafkaError when no server answers."""
    options = {"enable_idempotence": True, "acks": "all", "metrics_enabled": False, **options}
    client = _client(KafkaProducer, url, client_id, **options)
    _ask_for_an_id_anew(client)
    return client


def partition_count(client: KafkaProducer, topic: str, wait_s: float = 0.0) -> int:
    """How many the topic has; known from memory but for the first time. Raises KafkaError when that takes longer than
    `wait_s` and the producer's own `max_block_ms`."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return len(client.partitions_for(topic))
        except KafkaTimeoutError as error:
            if time.monotonic() >= deadline:
                raise KafkaTimeoutError(
                    f"no server says where topic {topic} is; if there is none yet, `llmos admin init` makes the topics"
                ) from error


def known_partition_count(client: KafkaProducer, topic: str) -> int | None:
    """As `partition_count`, without waiting. None as long as no server has said; they are asked anew."""
    found = client._metadata.partitions_for_topic(topic)  # noqa: SLF001 - the library has only a call that waits
    if found is not None:
        return len(found)
    client._sender.add_topic(topic)  # noqa: SLF001
    client._metadata.request_update()  # noqa: SLF001
    return None


def close(client: KafkaProducer) -> None:
    """Let go of the producer, and of what it still holds after a moment: nobody waits for that any more."""
    try:
        client.close(timeout=CLOSE_S)
    except KafkaError as error:
        log.info("a producer ends with messages that were given up: %s", error)
        client._sender.force_close()  # noqa: SLF001 - `close` has raised before it came to this


def consumer(url: str, client_id: str, **options: Any) -> KafkaConsumer:
    """A consumer that commits nothing on its own. Raises KafkaError when no server answers."""
    options = {
        "enable_auto_commit": False,
        "auto_offset_reset": "earliest",
        "fetch_max_wait_ms": FETCH_WAIT_MS,
        "metrics_enabled": False,
        **options,
    }
    return _client(KafkaConsumer, url, client_id, **options)


def admin(url: str, client_id: str) -> KafkaAdminClient:
    """A client that asks about topics and groups, and makes them. Raises KafkaError when no server answers."""
    return _client(KafkaAdminClient, url, client_id)


def go_on_joining(client: KafkaConsumer) -> None:
    """To be called between polls of a member of a group.

    A poll may run out of time while the member joins, and the next one goes on with that only where the library still
    wants to join. It forgets so once it has assigned the partitions, when it was new metadata that made it join: the
    member would have partitions and never read them.
    """
    if client.group_metadata().state is MemberState.REBALANCING:
        client._coordinator.request_rejoin()  # noqa: SLF001 - there is no other way to say it


def identity_of(client: KafkaConsumer, topic: str) -> UUID | None:
    """Which of the topics that ever had this name the consumer reads, as far as it knows. Asks nobody."""
    found: UUID | None = client._client.cluster.topic_id(topic)  # noqa: SLF001 - the library shows it nowhere else
    return found


def _ask_for_an_id_anew(client: KafkaProducer) -> None:
    """Let a producer that gives up its id ask for another.

    It does so when a message that it had tried more than once expires. The library asks for an id only in its first
    state, and stays in the one it is in: it would wait for an id for ever, and send nothing any more.
    """
    ids = client._transaction_manager  # noqa: SLF001 - there is no other way to reach it
    give_up = ids.reset_producer_id

    def give_up_and_ask() -> None:
        with ids._lock:  # noqa: SLF001
            give_up()
            ids._current_state = TransactionState.UNINITIALIZED  # noqa: SLF001

    ids.reset_producer_id = give_up_and_ask


def _client(kind: Callable[..., Any], url: str, client_id: str, **options: Any) -> Any:
    """A connected client. One that does not get so far would leave its thread and its sockets behind."""
    made: list[_NetClient] = []

    def make(**config: Any) -> KafkaNetClient:
        made.append(_NetClient(**config))
        return made[-1]

    address = Address.parse(url)
    common = {
        "bootstrap_servers": list(address.servers),
        **address.options,
        "client_id": client_id,
        "kafka_client": make,
        "request_timeout_ms": REQUEST_TIMEOUT_MS,
        "bootstrap_timeout_ms": BOOTSTRAP_TIMEOUT_MS,
        "reconnect_backoff_max_ms": 500,
    }
    try:
        return kind(**{**common, **options})
    except BaseException as error:
        for net in made:
            net.close()
        refusal = made[0].refusal if made and isinstance(error, KafkaTimeoutError) else None
        if isinstance(refusal, SaslAuthenticationFailedError):
            _, _, why = str(refusal).rpartition(f"{SaslAuthenticationFailedError.__name__}: ")
            raise Refused(f"{address} refuses: {why}") from error
        if isinstance(error, KafkaTimeoutError):
            raise NoAnswer(address, refusal) from error
        raise


class _NetClient(KafkaNetClient):  # type: ignore[misc]
    """Keeps why the last connection failed, of which the library only tells that it took too long."""

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        self.cluster.config["allow_auto_create_topics"] = False  # the option of that name does not get so far
        self.refusal: Exception | None = None
        self._connect, self._manager.get_connection = self._manager.get_connection, self._watched_connection

    def _watched_connection(self, *which: Any, **how: Any) -> Any:
        connection = self._connect(*which, **how)
        if not connection.init_future.is_done:
            connection.init_future.add_errback(self._note)
        return connection

    def _note(self, error: Exception) -> None:
        if not isinstance(self.refusal, SaslAuthenticationFailedError):  # after one, servers only hang up
            self.refusal = error
