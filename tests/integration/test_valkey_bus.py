"""What only the bus on Valkey has to get right: trimming, lost answers, tables that were trimmed behind a follower."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import wait
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
import redis

from shared import bus as buses
from shared.bus.port import BusRefuses, BusUnavailable, IncompatibleBus, Poison, Position, Record
from shared.bus.valkey import ValkeyBus, layout
from shared.bus.valkey.trimming import trim
from shared.contracts.jobs import CancelJob
from shared.contracts.topics import TOPICS, Topic
from shared.settings import Settings, SettingsError
from tests.contract.test_bus import Seen, put
from tests.servers import ValkeyServer, valkey
from tests.waiting import eventually


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyServer]:
    with valkey(durable=True) as server:
        yield server


@pytest.fixture
def client(server: ValkeyServer) -> Iterator[redis.Redis]:
    with server.client() as client:
        yield client


@pytest.fixture
def bus(server: ValkeyServer) -> Iterator[ValkeyBus]:
    bus = ValkeyBus(server.bus_url, "test")
    yield bus
    bus.close()


@pytest.fixture
def topic() -> Topic:
    return Topic(f"{uuid4().hex}.events", timedelta(days=1))


def trim_now(client: redis.Redis, topic: Topic) -> None:
    """Trim as if everything in the topic were past its retention."""
    trim(client, Topic(topic.name, timedelta(0)))


NAMES = [str(n) for n in range(500)]


def test_trimming_lets_go_of_what_all_groups_have_acknowledged(
    bus: ValkeyBus, client: redis.Redis, topic: Topic
) -> None:
    seen = Seen()
    bus.subscribe(topic, "g", seen)
    put(bus, topic, *NAMES, key="job")
    eventually(lambda: bus.lag(topic, "g") == 0)
    trim_now(client, topic)
    assert client.xlen(layout.stream(topic)) < 200  # whole nodes of 100 go


def test_trimming_keeps_what_a_group_has_read_and_not_acknowledged(
    bus: ValkeyBus, client: redis.Redis, topic: Topic
) -> None:
    done, stuck = Seen(), Seen()
    stuck.fail_on = "150"
    put(bus, topic, *NAMES, key="job")
    bus.subscribe(topic, "done", done)
    bus.subscribe(topic, "stuck", stuck, max_batch=50)
    eventually(lambda: bus.lag(topic, "done") == 0 and stuck.failures)
    trim_now(client, topic)
    assert client.xlen(layout.stream(topic)) < 500
    stuck.fail_on = None
    eventually(lambda: stuck.names == NAMES)


def test_trimming_keeps_what_a_group_has_not_read(bus: ValkeyBus, client: redis.Redis, topic: Topic) -> None:
    absent = Seen()
    bus.subscribe(topic, "absent", absent)
    put(bus, topic, "first", key="job")
    eventually(lambda: bus.lag(topic, "absent") == 0)
    bus.close()
    busy = ValkeyBus(bus._url, "busy")
    put(busy, topic, *NAMES, key="job")
    trim_now(client, topic)
    busy.subscribe(topic, "absent", absent)
    eventually(lambda: absent.names == ["first", *NAMES])
    busy.close()


def test_a_batch_whose_answer_was_lost_is_appended_once(
    bus: ValkeyBus, client: redis.Redis, topic: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher = bus._publisher
    send, lost = publisher._publish, list[Any]()

    def lose_the_first_answer(**arguments: Any) -> object:
        answer = send(**arguments)
        if not lost:
            lost.append(answer)
            raise redis.ConnectionError("the server went away before it answered")
        return answer

    monkeypatch.setattr(publisher, "_publish", lose_the_first_answer)
    position = bus.publish(topic, "job", CancelJob(job_id="once")).result(timeout=10)
    assert layout.to_position(lost[0][0]) == position
    assert client.xlen(layout.stream(topic)) == 1


def test_waiting_messages_go_in_one_step(bus: ValkeyBus, client: redis.Redis, topic: Topic) -> None:
    put(bus, topic, "warm")
    before = int(client.info("commandstats")["cmdstat_evalsha"]["calls"])
    with bus._publisher._changed:  # hold the publisher, as a slow disk does
        futures = [bus.publish(topic, "k", CancelJob(job_id=name)) for name in "abcdefgh"]
    wait(futures, timeout=10)
    assert client.xlen(layout.stream(topic)) == 9
    assert int(client.info("commandstats")["cmdstat_evalsha"]["calls"]) - before == 1


def test_a_follower_whose_changes_were_trimmed_away_reads_the_table_again(
    bus: ValkeyBus, client: redis.Redis, server: ValkeyServer
) -> None:
    table = Topic(f"{uuid4().hex}.state", None, compacted=True)
    seen, caught_up = Seen(), list[int]()
    entered, go_on = threading.Event(), threading.Event()

    def slow(record: Record) -> None:
        seen.one(record)
        if seen.names[-1] == "stop":
            entered.set()
            go_on.wait(20)

    put(bus, table, "x", "deleted")
    bus.follow(table, slow, lambda: caught_up.append(1))
    eventually(lambda: caught_up)
    put(bus, table, "stop", key="s")
    assert entered.wait(10)
    put(bus, table, "newer", key="x")
    bus.publish(table, "deleted", None).result(timeout=10)
    client.xtrim(layout.stream(table), maxlen=0, approximate=False)
    go_on.set()
    eventually(lambda: {"newer", "-deleted"} <= set(seen.names))
    put(bus, table, "live", key="x")
    eventually(lambda: seen.names[-1] == "live")
    assert len(caught_up) == 1


def test_a_follower_notices_a_table_that_was_wiped_and_begun_anew(bus: ValkeyBus, client: redis.Redis) -> None:
    table = Topic(f"{uuid4().hex}.state", None, compacted=True)
    owner, worker = Seen(), Seen()
    put(bus, table, "a", "b", "c")
    bus.follow(table, owner.one, patience_s=0)
    bus.follow(table, worker.one)
    eventually(lambda: sorted(owner.names) == sorted(worker.names) == ["a", "b", "c"])
    client.delete(layout.stream(table), layout.table(table))
    put(bus, table, "again", key="a")
    eventually(lambda: {"again", "-b", "-c"} <= set(owner.names))
    assert "-a" not in owner.names
    put(bus, table, "back", key="b")
    eventually(lambda: worker.names[-1] == "back")
    assert not [name for name in worker.names if name.startswith("-")], "its work goes on"


def test_a_table_is_the_same_after_its_follower_was_slow_and_changes_came_while_it_was_read(
    bus: ValkeyBus,
) -> None:
    table = Topic(f"{uuid4().hex}.state", None, compacted=True)
    put(bus, table, *(f"old-{n}" for n in range(50)))
    view: dict[str, Position] = {}
    backwards: list[str] = []

    def on(record: Record) -> None:
        if record.key in view and record.position < view[record.key]:
            backwards.append(record.key)
        view[record.key] = record.position
        if record.key == "old-7":  # changes while the table is being read
            put(bus, table, "again", key="old-8")

    bus.follow(table, on)
    put(bus, table, "last")
    eventually(lambda: "last" in view)
    assert not backwards


def test_a_topic_keeps_its_shape(bus: ValkeyBus) -> None:
    name = f"{uuid4().hex}.events"
    put(bus, Topic(name, None), "a")
    with pytest.raises(IncompatibleBus, match=f"topic {name} is a log on this bus and a table in this version"):
        bus.publish(Topic(name, None, compacted=True), "a", None).result(timeout=10)
    other = ValkeyBus(bus._url, "other")
    with pytest.raises(IncompatibleBus):
        other.publish(Topic(name, None, compacted=True), "a", None).result(timeout=10)
    other.close()


def test_the_dlq_says_why_and_where_from(bus: ValkeyBus, client: redis.Redis, topic: Topic) -> None:
    def refuse(records: Sequence[Record]) -> None:
        raise Poison(records[0], "no such job")

    [position] = put(bus, topic, "a")
    bus.subscribe(topic, "g", refuse)
    eventually(lambda: bus.dlq_depth(topic) == 1)
    [(_, fields)] = layout.entries([["", client.xrange(layout.stream(topic.dlq))]])
    assert fields[b"reason"] == b"no such job"
    assert fields[b"group"] == b"g"
    assert fields[b"position"].decode() == layout.to_id(position)


def test_a_standby_takes_over_when_the_owner_goes(bus: ValkeyBus, server: ValkeyServer, topic: Topic) -> None:
    first, second = Seen(), Seen()
    owner = ValkeyBus(server.bus_url, "owner")
    owner.subscribe(topic, "g", first)
    put(bus, topic, "a")
    eventually(lambda: first.names == ["a"])
    bus.subscribe(topic, "g", second)
    put(bus, topic, "b")
    eventually(lambda: first.names == ["a", "b"])
    owner.close()
    put(bus, topic, "c")
    eventually(lambda: second.names == ["c"])


def test_positions_and_ids_are_the_same_thing() -> None:
    position = layout.to_position(b"1795353030151-7")
    assert layout.to_id(position) == "1795353030151-7"
    assert layout.to_position(b"1795353030151-8") > position
    assert position.offset < 2**63
    assert all("." in topic.name for topic in TOPICS)


@pytest.mark.parametrize("url", ["", "redis://x", "valkey+unix://", "valkey://host:port"])
def test_an_address_that_cannot_be_is_refused_with_a_sentence(url: str) -> None:
    with pytest.raises(SettingsError, match=r"names no bus|is no address"):
        buses.connect(url, "test")


@pytest.mark.parametrize("login", ["", "?password=wrong"])
def test_a_start_with_a_wrong_password_ends_with_a_sentence(login: str) -> None:
    with valkey(durable=True) as server, server.client() as client:
        client.config_set("requirepass", "right")
        bus = buses.connect(f"{server.bus_url}{login}", "test")
        with pytest.raises(SettingsError, match=r"^LLMOS_BUS_URL: the server refuses: ") as ended:
            buses.need(bus, Settings()).there()
        assert "wrong" not in str(ended.value)
        with pytest.raises(BusRefuses):
            bus.ping()
        bus.close()
        let_in = buses.connect(f"{server.bus_url}?password=right", "test")
        assert buses.need(let_in, Settings()).there()
        let_in.close()


def test_a_server_that_is_not_there_is_said_so() -> None:
    bus = ValkeyBus("valkey+unix:///tmp/no-such-socket", "test")
    with pytest.raises(BusUnavailable, match="the bus does not answer"):
        bus.ping()
    bus.close()
