"""Real Kafka brokers for tests: one for all that only talk to it, and others that are killed and come back.

They are started by `kafka.sh` in `servers/kafka` beside the project; the first may be at LLMOS_TEST_KAFKA=host:port.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from kafka import TopicPartition
from kafka.errors import KafkaError

from shared.bus.kafka.topics import create_topics
from shared.kafka.clients import admin, consumer, producer
from tests import beside
from tests.ports import free_ports_in_a_row

HOW_TO_GET_ONE = (
    "no Kafka: put its start script at servers/kafka/kafka.sh beside the project (with Java 17), or name a broker that "
    "tests may fill, LLMOS_TEST_KAFKA=host:port (`docker run -p 9092:9092 apache/kafka:4.3.1`)"
)
# Topics that come into being by themselves have the wrong shape, and servers make them if nothing is said.
# A broker that was killed may only come back when its session is over: that is nine seconds if nothing is said.
EXTRA = """
auto.create.topics.enable=true
broker.session.timeout.ms=1000
broker.heartbeat.interval.ms=250
log.cleaner.backoff.ms=100
log.retention.check.interval.ms=500
"""
# Where nobody kills it: on a busy machine a short session ends by itself, and the broker leads nothing for a while.
LONG_SESSION = "broker.session.timeout.ms=9000\n"


class KafkaServer:
    """A broker at `address`. With a folder it is a process of these tests."""

    def __init__(self, address: str, script: Path | None = None, folder: Path | None = None) -> None:
        self.address = address
        self.url = f"kafka://{address}"
        self.extra = ""
        self._script = script
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    @property
    def folder(self) -> Path:
        assert self._folder is not None
        return self._folder

    def start(self, timeout_s: float = 60) -> None:
        """Returns when it answers; what it had kept is there again."""
        assert self._folder is not None
        deadline = time.monotonic() + timeout_s
        self._process = self._launch()
        while not self.answers():
            unformatted = not (self._folder / "data/log/meta.properties").exists()
            if self._process.poll() is not None and unformatted and time.monotonic() < deadline:
                # The script draws a random id for the cluster; one that begins with '-' is taken for an option.
                self._process = self._launch()
            elif self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Kafka did not start: {(self._folder / 'out').read_text()[-2000:]}")

    def _launch(self) -> subprocess.Popen[bytes]:
        assert self._folder is not None
        command = ["bash", str(self._script), str(self._folder / "data"), str(self.port)]
        with (self._folder / "out").open("ab") as out:
            return subprocess.Popen(
                command,
                env={**os.environ, "KAFKA_EXTRA": EXTRA + self.extra},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )

    def kill(self) -> None:
        """kill -9. The script has become the broker, so there is nothing else to kill."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It keeps its connections and says nothing, as a host that hangs. Skips where it is no process of ours."""
        if self._process is None:
            pytest.skip(f"the broker at {self.address} is not a process of these tests, so it cannot be stopped")
        process = self._process
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)  # where it was killed meanwhile, this does nothing

    def end(self) -> None:
        self.kill()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def answers(self) -> bool:
        try:
            self.ask(lambda client: client.describe_cluster())
        except KafkaError:
            return False
        return True

    def ask(self, question: Callable[[Any], Any]) -> Any:
        """Look behind the adapters."""
        with admin(self.url, "test") as client:
            return question(client)

    def put(self, topic: str, key: str, raw: bytes | None, partition: int | None = None) -> None:
        """Bytes that no adapter of this version would send."""
        client = producer(self.url, "test")
        client.send(topic, key=key.encode(), value=raw, partition=partition).get(timeout=20)
        client.close()

    def records(self, topic: str) -> list[Any]:
        """All that the topic keeps now."""
        with consumer(self.url, "test") as client:
            partitions = [TopicPartition(topic, number) for number in client.partitions_for_topic(topic)]
            ends = client.end_offsets(partitions)
            client.assign(partitions)
            client.seek_to_beginning()
            found = []
            while any((client.position(partition) or 0) < end for partition, end in ends.items()):
                found += [record for records in client.poll(timeout_ms=100).values() for record in records]
            return found

    def count(self, topic: str) -> int:
        return len(self.records(topic))

    def delete(self, *topics: str) -> None:
        """Returns when they are gone."""
        self.ask(lambda client: client.delete_topics(list(topics)))
        while self.ask(lambda client: set(client.list_topics())) & set(topics):
            time.sleep(0.05)


@cache
def kafka() -> KafkaServer:
    """The broker of this run, with the topics of the vocabulary. Skips where there is none, and fails in CI."""
    address = os.environ.get("LLMOS_TEST_KAFKA")
    server = KafkaServer(address) if address else own_kafka()
    if not address:
        server.extra = LONG_SESSION
        atexit.register(server.end)
        server.start()
    create_topics(server.url)
    return server


@contextmanager
def mortal_kafka() -> Iterator[KafkaServer]:
    """A broker that may be killed; without topics, so that it is soon back. Skips where none can be started."""
    server = own_kafka()
    try:
        server.start()
        yield server
    finally:
        server.end()


def another_broker(first: KafkaServer, number: int) -> KafkaServer:
    """A broker of the cluster whose `first` is up, not started yet. `number` is 2 or more."""
    server = own_kafka()
    server.extra = f"""
process.roles=broker
node.id={number}
controller.quorum.voters=1@127.0.0.1:{first.port + 1}
listeners=PLAINTEXT://{server.address}
"""
    log = server.folder / "data/log"
    log.mkdir(parents=True)
    cluster = re.search("^cluster.id=.*", (first.folder / "data/log/meta.properties").read_text(), re.MULTILINE)
    assert cluster is not None
    (log / "meta.properties").write_text(f"version=1\nnode.id={number}\n{cluster[0]}\n")
    return server


def own_kafka(ports: int = 2) -> KafkaServer:
    """A broker that is not started yet; also the ports after its own are free. Skips where none can be started."""
    script = beside.script("kafka/kafka.sh")
    if script is None or shutil.which("java") is None:
        beside.go_without(HOW_TO_GET_ONE)
    # The broker also takes the port after its own.
    return KafkaServer(f"127.0.0.1:{free_ports_in_a_row(ports)}", script, Path(tempfile.mkdtemp(prefix="llmos-kafka-")))
