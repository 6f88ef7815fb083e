"""What only the bus on Kafka promises: topics of a known shape, partitions that fail and move apart."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import orjson
import pytest
from kafka import KafkaAdminClient, KafkaConsumer
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import KafkaError

from shared.bus import check_access, need
from shared.bus.delivery import RawRecord
from shared.bus.kafka import KafkaBus, group
from shared.bus.kafka.follower import Follower
from shared.bus.kafka.topics import create_topics, spec
from shared.bus.port import BusUnavailable, IncompatibleBus, Record
from shared.contracts.jobs import CancelJob
from shared.contracts.topics import JOBS_STATE, NODES_HEARTBEATS, TOPICS, Topic
from shared.kafka.address import Address
from shared.kafka.topics import make_topics
from shared.settings import Settings, SettingsError
from tests.contract.test_bus import Seen, name_of, put
from tests.kafka_server import KafkaServer, kafka
from tests.waiting import eventually

PARTITIONS = 4


@pytest.fixture
def server() -> KafkaServer:
    return kafka()


@pytest.fixture
def bus(server: KafkaServer) -> Iterator[KafkaBus]:
    with_topics = KafkaBus(server.url, "test")
    yield with_topics
    with_topics.close()


def new_topic(server: KafkaServer, kind: str = "events", **shape: object) -> Topic:
    topic = replace(Topic(f"{uuid4().hex}.{kind}", timedelta(days=1), PARTITIONS), **shape)  # type: ignore[arg-type]
    create_topics(server.url, [topic])
    return topic


def new_table(server: KafkaServer) -> Topic:
    return new_topic(server, "state", retention=None, compacted=True)


def settings_of(server: KafkaServer, topic: str, *names: str) -> dict[str, str]:
    asked = ConfigResource(ConfigResourceType.TOPIC, topic, dict.fromkeys(names))
    found = server.ask(lambda client: client.describe_configs([asked], config_filter="all"))["topic"][topic]
    return {name: found[name]["value"] for name in names}


def keys_apart(bus: KafkaBus, topic: Topic) -> tuple[str, str]:
    """Two keys of different partitions, by putting a record with each."""
    first = put(bus, topic, "0", key="0")[0]
    return "0", next(str(n) for n in range(1, 100) if put(bus, topic, "0", key=str(n))[0].partition != first.partition)


def put_from_elsewhere(server: KafkaServer, topic: Topic, *names: str, key: str) -> None:
    """Put as a process does that has not seen the topic before."""
    bus = KafkaBus(server.url, "elsewhere")
    put(bus, topic, *names, key=key)
    bus.close()


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("kafka://a:1", ["a:1"]),
        ("kafka://a,b:2/", ["a:9092", "b:2"]),
        ("kafka://[::1]:9092", ["[::1]:9092"]),
    ],
)
def test_an_address_names_servers(url: str, found: list[str]) -> None:
    assert Address.parse(url).servers == found


@pytest.mark.parametrize("url", ["kafka://", "kafka://a:b", "kafka://a,,b", "kafka://a:99999", "redis://a"])
def test_an_address_that_is_none_is_refused_with_a_sentence(url: str) -> None:
    with pytest.raises(SettingsError, match="kafka://host:9092"):
        KafkaBus(url, "test")


def test_topics_are_made_as_the_vocabulary_says_and_once(server: KafkaServer) -> None:
    assert create_topics(server.url).created == []  # the fixture has made them
    names = ["cleanup.policy", "retention.ms"]
    assert settings_of(server, JOBS_STATE.name, *names) == {"cleanup.policy": "compact", "retention.ms": "-1"}
    assert set(settings_of(server, NODES_HEARTBEATS.name, *names).values()) == {"compact,delete", "600000"}
    assert settings_of(server, JOBS_STATE.dlq.name, *names)["retention.ms"] == str(30 * 24 * 3600 * 1000)
    partitions = server.ask(lambda client: client.describe_topics([topic.name for topic in TOPICS]))
    assert {topic["name"]: len(topic["partitions"]) for topic in partitions} == {
        topic.name: topic.partitions for topic in TOPICS
    }


def test_a_new_retention_reaches_a_topic_that_is_there(server: KafkaServer) -> None:
    events = new_topic(server)
    assert create_topics(server.url, [replace(events, retention=timedelta(hours=1))]).created == []
    eventually(lambda: settings_of(server, events.name, "retention.ms") == {"retention.ms": "3600000"})


def test_settings_that_a_topic_does_not_take_are_no_success(server: KafkaServer) -> None:
    events = spec(new_topic(server))
    with pytest.raises(KafkaError, match=f"^topic {events.name} does not take its settings: .*segment.ms"):
        make_topics(server.url, [replace(events, configs={"segment.ms": "0"})])


@pytest.mark.parametrize("other", [{"partitions": 5}, {"compacted": True}], ids=str)
def test_a_topic_of_another_shape_is_refused_by_all(
    server: KafkaServer, bus: KafkaBus, other: dict[str, object]
) -> None:
    misshapen = replace(new_topic(server), **other)  # type: ignore[arg-type]
    with pytest.raises(IncompatibleBus, match=misshapen.name):
        create_topics(server.url, [misshapen])
    with pytest.raises(IncompatibleBus, match="llmos admin init"):
        KafkaBus(server.url, "test", topics=[misshapen]).ping()
    if "partitions" in other:
        with pytest.raises(IncompatibleBus, match="4 partitions"):
            bus.publish(misshapen, "a", CancelJob(job_id="a")).result(timeout=20)


def test_a_start_on_a_topic_of_another_shape_ends_with_a_sentence(server: KafkaServer) -> None:
    class Misshapen:
        def ping(self) -> None:
            raise IncompatibleBus("topic jobs.state has 3 partitions and 12 are needed")

    with pytest.raises(SettingsError, match=r"LLMOS_BUS_URL: topic jobs\.state has 3"):
        check_access(Misshapen())  # type: ignore[arg-type]
    bus = KafkaBus(server.url, "start")
    check_access(bus)
    bus.close()


def test_a_bus_without_topics_says_how_to_make_them(server: KafkaServer) -> None:
    missing = Topic(f"{uuid4().hex}.events", timedelta(days=1), PARTITIONS)
    bus, seen = KafkaBus(server.url, "test", topics=[missing]), Seen()
    impatient = KafkaBus(server.url, "test", delivery_timeout_s=1)
    with pytest.raises(BusUnavailable, match=f"no topic {missing.name} yet: `llmos admin init`"):
        bus.ping()
    with pytest.raises(BusUnavailable, match="llmos admin init"):
        impatient.publish(missing, "a", CancelJob(job_id="a")).result(timeout=20)
    impatient.close()
    bus.subscribe(missing, "g", seen)
    create_topics(server.url, [missing])
    bus.ping()
    put(bus, missing, "a")
    eventually(lambda: seen.names == ["a"])
    bus.close()


def test_a_topic_whose_settings_are_not_known_yet_is_waited_for(
    server: KafkaServer, bus: KafkaBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = new_topic(server)
    describe, just_made = KafkaAdminClient.describe_configs, [True]

    def describe_later(client: KafkaAdminClient, *asked: object, **how: object) -> object:
        return {"topic": {events.name: {}}} if just_made else describe(client, *asked, **how)

    monkeypatch.setattr(KafkaAdminClient, "describe_configs", describe_later)
    waiting = KafkaBus(server.url, "test", topics=[events])
    with pytest.raises(BusUnavailable, match=f"topic {events.name} has no settings yet"):
        waiting.ping()
    needed = need(waiting, Settings())
    assert not needed.there()
    just_made.clear()
    eventually(needed.there)
    waiting.close()


def test_a_missing_topic_holds_up_no_other_and_gets_its_messages_in_order_once_it_is_there(
    server: KafkaServer, bus: KafkaBus
) -> None:
    events, seen = new_topic(server), Seen()
    missing = Topic(f"{uuid4().hex}.events", timedelta(days=1), PARTITIONS)
    waiting = [bus.publish(missing, "job", CancelJob(job_id=str(n))) for n in range(20)]
    put(bus, events, *"abc")
    waiting += [bus.publish(missing, "job", CancelJob(job_id=str(n))) for n in range(20, 40)]
    put(bus, events, "d")
    assert not any(future.done() for future in waiting)
    create_topics(server.url, [missing])
    bus.subscribe(missing, "g", seen)
    eventually(lambda: seen.names == [str(n) for n in range(40)])
    assert all(future.result(timeout=20) for future in waiting)


def test_a_message_for_a_missing_topic_fails_after_its_own_time(server: KafkaServer) -> None:
    missing = Topic(f"{uuid4().hex}.events", timedelta(days=1), PARTITIONS)
    impatient = KafkaBus(server.url, "test", delivery_timeout_s=3)
    for _ in range(2):
        began = time.monotonic()
        with pytest.raises(BusUnavailable, match=r"within 3 s: .*llmos admin init"):
            impatient.publish(missing, "a", CancelJob(job_id="a")).result(timeout=20)
        assert 3 <= time.monotonic() - began < 6
    impatient.close()


def test_admin_init_makes_the_topics_and_may_run_again(server: KafkaServer, tmp_path: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LLMOS_")}
    environment = {
        **clean,
        "LLMOS_HOME": str(tmp_path),
        "LLMOS_BUS_URL": server.url,
        "LLMOS_REQUESTS_URL": server.url,
    }
    command = [sys.executable, "-m", "llmos", "admin", "init", "--json"]
    for _ in range(2):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
    made = orjson.loads(done.stdout)
    assert made["bus"] == made["requests"] == {"made": []}


def test_admin_init_says_that_no_server_answers() -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LLMOS_")}
    command = [sys.executable, "-m", "llmos", "admin", "init", "--wait", "0"]
    environment = {**clean, "LLMOS_BUS_URL": "kafka://127.0.0.1:1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 4
    assert "kafka://127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_failing_partition_holds_up_no_other(server: KafkaServer, bus: KafkaBus) -> None:
    events, seen = new_topic(server), Seen()
    stuck, free = keys_apart(bus, events)
    seen.fail_on = "fails"
    bus.subscribe(events, "g", seen)
    put(bus, events, "fails", "after", key=stuck)
    eventually(lambda: seen.failures)
    put(bus, events, "passes", key=free)
    eventually(lambda: "passes" in seen.names)
    assert not {"fails", "after"} & set(seen.names)
    seen.fail_on = None
    eventually(lambda: seen.names[-2:] == ["fails", "after"])


def test_handlers_of_a_subscription_run_one_at_a_time(server: KafkaServer, bus: KafkaBus) -> None:
    events = new_topic(server)
    running, most, seen = Counter[str](), Counter[str](), list[str]()

    def watch(records: Sequence[Record]) -> None:
        running["now"] += 1
        most["ever"] = max(most["ever"], running["now"])
        threading.Event().wait(0.002)  # so that another could come in between
        seen.extend(map(name_of, records))
        running["now"] -= 1

    put(bus, events, *map(str, range(40)))
    bus.subscribe(events, "g", watch, max_batch=1)
    eventually(lambda: len(seen) == 40)
    assert most["ever"] == 1


def test_members_that_come_and_go_neither_lose_nor_reorder_nor_overlap(server: KafkaServer, bus: KafkaBus) -> None:
    events = new_topic(server)
    handled: dict[str, list[int]] = defaultdict(list)
    keys, lock, overlaps, inside = [str(n) for n in range(6)], threading.Lock(), list[str](), set[str]()

    def note(records: Sequence[Record]) -> None:
        mine = {record.key for record in records}
        with lock:
            overlaps.extend(mine & inside)
            inside.update(mine)
        threading.Event().wait(0.01)  # long enough to meet a rebalance
        with lock:
            inside.difference_update(mine)
            for record in records:
                handled[record.key].append(int(name_of(record)))

    others = [KafkaBus(server.url, f"other-{n}") for n in range(2)]
    bus.subscribe(events, "g", note, max_batch=4)
    futures = []
    for n in range(150):
        futures += [bus.publish(events, key, CancelJob(job_id=str(n))) for key in keys]
        if n in (30, 60):
            others[n // 30 - 1].subscribe(events, "g", note, max_batch=4)
        if n == 100:
            others[0].close()
        futures[-1].result(timeout=20)
    eventually(lambda: all(len(set(handled[key])) == 150 for key in keys), timeout_s=30)
    others[1].close()
    assert all(list(dict.fromkeys(handled[key])) == list(range(150)) for key in keys)
    assert not overlaps
    assert sum(map(len, handled.values())) == 150 * len(keys)  # an orderly move repeats nothing


def test_a_slow_handler_keeps_its_place_in_the_group(server: KafkaServer, bus: KafkaBus) -> None:
    events, second = new_topic(server), list[str]()
    entered, go_on, first = threading.Event(), threading.Event(), list[str]()

    def slow(records: Sequence[Record]) -> None:
        entered.set()
        go_on.wait(30)
        first.extend(map(name_of, records))

    put(bus, events, "a")
    bus.subscribe(events, "g", slow)
    assert entered.wait(20)
    other = KafkaBus(server.url, "other")
    other.subscribe(events, "g", lambda records: second.extend(map(name_of, records)))
    assert not threading.Event().wait(12)  # longer than a session: only heartbeats keep the member in its group
    assert (first, second) == ([], [])
    go_on.set()
    eventually(lambda: first == ["a"])
    other.close()
    assert second == []


def test_what_a_member_handles_for_longer_than_its_group_waits_comes_again_elsewhere_and_is_not_lost(
    server: KafkaServer, bus: KafkaBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group, "REBALANCE_MS", 3000)
    events, second = new_topic(server), Seen()
    entered, go_on, first = threading.Event(), threading.Event(), list[str]()

    def slow(records: Sequence[Record]) -> None:
        entered.set()
        go_on.wait(60)
        first.extend(map(name_of, records))

    names = [str(n) for n in range(20)]
    put(bus, events, *names)
    bus.subscribe(events, "g", slow, max_batch=1)
    assert entered.wait(20)
    other = KafkaBus(server.url, "other")
    other.subscribe(events, "g", second)
    eventually(lambda: sorted(second.names) == sorted(names), timeout_s=60)
    assert first == []
    go_on.set()
    put(bus, events, "last")
    eventually(lambda: {"last"} <= {*first, *second.names} and bus.lag(events, "g") == 0, timeout_s=60)
    other.close()


def test_a_follower_of_a_compacted_log_catches_up(server: KafkaServer, bus: KafkaBus) -> None:
    table = new_table(server)
    quick = {"segment.ms": "100", "min.cleanable.dirty.ratio": "0.01", "delete.retention.ms": "0"}
    server.ask(lambda client: client.alter_configs([ConfigResource(ConfigResourceType.TOPIC, table.name, dict(quick))]))
    for n in range(30):
        put(bus, table, str(n), key="x")
    bus.publish(table, "gone", CancelJob(job_id="gone")).result(timeout=20)
    bus.publish(table, "gone", None).result(timeout=20)

    def kept() -> int:
        put(bus, table, "newest", key="x")  # rolls the segment, so that it may be cleaned
        return server.count(table.name)

    eventually(lambda: kept() < 20, timeout_s=60)
    seen, caught_up = Seen(), list[int]()
    bus.follow(table, seen.one, lambda: caught_up.append(1))
    eventually(lambda: caught_up)
    assert set(seen.names) <= {"newest"}
    put(bus, table, "live", key="x")
    eventually(lambda: seen.names[-1] == "live")


def test_a_wiped_table_is_read_anew_and_what_it_lost_is_given_up_later(server: KafkaServer, bus: KafkaBus) -> None:
    table, patient, hasty = new_table(server), Seen(), Seen()
    put(bus, table, "old", "kept", key="x")
    put(bus, table, "lost")
    bus.follow(table, patient.one, patience_s=600)
    bus.follow(table, hasty.one, patience_s=0)
    eventually(lambda: set(patient.names) == set(hasty.names) == {"kept", "lost"})
    server.delete(table.name)
    create_topics(server.url, [table])
    put_from_elsewhere(server, table, *"12345", "again", key="x")  # more than there was: the old place is there again
    eventually(lambda: "again" in patient.names and {"again", "-lost"} <= set(hasty.names), timeout_s=30)
    assert "-lost" not in patient.names


def test_a_failed_read_of_a_wiped_table_does_not_make_its_keys_gone_at_once(
    server: KafkaServer, bus: KafkaBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, patient = new_table(server), Seen()
    put(bus, table, "lost")
    bus.follow(table, patient.one, patience_s=600)
    eventually(lambda: patient.names == ["lost"])
    failing, being_read = [KafkaError("the server is not up yet")] * 2, [table]

    def latest(follower: Follower, client: KafkaConsumer, partition: int, begin: int, end: int) -> Iterator[RawRecord]:
        if failing:
            raise failing.pop()
        if partition == table.partitions - 1:
            being_read.clear()
        return whole(follower, client, partition, begin, end)

    whole = Follower._latest
    monkeypatch.setattr(Follower, "_latest", latest)
    server.delete(table.name)
    create_topics(server.url, [table])
    put_from_elsewhere(server, table, "new", key="x")
    eventually(lambda: "new" in patient.names and not failing and not being_read, timeout_s=30)
    assert "-lost" not in patient.names


def test_a_group_reads_a_topic_that_was_made_anew_from_its_beginning(server: KafkaServer, bus: KafkaBus) -> None:
    events, seen = new_topic(server), Seen()
    subscription = bus.subscribe(events, "g", seen)
    put(bus, events, *"abc", key="job")
    eventually(lambda: seen.names == list("abc"))
    subscription.close()
    server.delete(events.name)
    create_topics(server.url, [events])
    put_from_elsewhere(server, events, *"defgh", key="job")  # more than there was: the old place is there again
    bus.subscribe(events, "g", seen)
    eventually(lambda: seen.names == list("abcdefgh"), timeout_s=30)


def test_a_group_that_reads_on_while_its_topic_is_made_anew_misses_nothing(server: KafkaServer, bus: KafkaBus) -> None:
    events, seen = new_topic(server), Seen()
    other = KafkaBus(server.url, "other")
    for member in (bus, other):
        member.subscribe(events, "g", seen)
    put(bus, events, *"abc", key="job")
    eventually(lambda: seen.names == list("abc"))
    server.delete(events.name)
    create_topics(server.url, [events])
    put_from_elsewhere(server, events, *"defgh", key="job")
    eventually(lambda: set(seen.names) == set("abcdefgh"), timeout_s=60)
    put_from_elsewhere(server, events, "i", key="job")
    eventually(lambda: seen.names[-1] == "i" and bus.lag(events, "g") == 0)
    other.close()


def test_a_place_that_was_saved_in_a_topic_made_anew_by_who_read_the_old_one_is_not_gone_on_from(
    server: KafkaServer, bus: KafkaBus
) -> None:
    events, seen, handled = new_topic(server), Seen(), list[str]()
    entered, go_on = threading.Event(), threading.Event()

    def slow(records: Sequence[Record]) -> None:
        entered.set()
        go_on.wait(60)
        handled.extend(map(name_of, records))

    put(bus, events, *"abc", key="job")
    subscription = bus.subscribe(events, "g", slow)
    assert entered.wait(20)
    server.delete(events.name)
    create_topics(server.url, [events])
    put_from_elsewhere(server, events, *"defgh", key="job")
    go_on.set()
    eventually(lambda: handled[:3] == list("abc"))
    subscription.close()
    bus.subscribe(events, "g", seen)
    eventually(lambda: set("defgh") <= {*seen.names, *handled}, timeout_s=30)


def test_a_dlq_record_says_why_it_is_there(server: KafkaServer, bus: KafkaBus) -> None:
    events, seen = new_topic(server), Seen()
    seen.poison = "bad"
    at = put(bus, events, "good", "bad", key="job")[1]
    bus.subscribe(events, "g", seen)
    eventually(lambda: bus.dlq_depth(events) == 1)
    headers = {name: value.decode() for name, value in server.records(events.dlq.name)[0].headers}
    assert headers == {"reason": "made to be refused", "group": "g", "position": str(at)}


def test_every_topic_bounds_a_message_above_the_claim_check() -> None:
    assert all(int(spec(topic).configs["max.message.bytes"]) > 512 * 1024 for topic in TOPICS)
