"""What every bus promises. The cases where a server dies are in test_bus_faults.py."""

from __future__ import annotations

import gc
import threading
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from uuid import uuid4

import orjson
import pytest

from shared.bus.port import BrokenRecord, Bus, BusUnavailable, IncompatibleBus, Poison, Position, Record
from shared.contracts.jobs import CancelJob
from shared.contracts.topics import Topic
from tests.contract.bus_worlds import WORLDS, BusWorld
from tests.waiting import eventually

PARTITIONS = 4


@pytest.fixture(scope="module", params=WORLDS)
def world(request: pytest.FixtureRequest) -> Iterator[BusWorld]:
    with WORLDS[request.param]() as world:
        yield world


@pytest.fixture
def connect(world: BusWorld) -> Iterator[Callable[[], Bus]]:
    buses: list[Bus] = []

    def connect() -> Bus:
        buses.append(world.connect())
        return buses[-1]

    yield connect
    for bus in buses:
        bus.close()


@pytest.fixture
def bus(connect: Callable[[], Bus]) -> Bus:
    return connect()


def new_topic(world: BusWorld, kind: str, retention: timedelta | None, *, compacted: bool = False) -> Topic:
    """A topic that no other test has. A few partitions, so that servers which make them are quick."""
    topic = Topic(f"{uuid4().hex}.{kind}", retention, PARTITIONS, compacted=compacted)
    world.create(topic)
    return topic


@pytest.fixture
def events(world: BusWorld) -> Topic:
    return new_topic(world, "events", timedelta(days=1))


@pytest.fixture
def commands(world: BusWorld) -> Topic:
    return new_topic(world, "commands", timedelta(days=1))


@pytest.fixture
def table(world: BusWorld) -> Topic:
    return new_topic(world, "state", None, compacted=True)


def put(bus: Bus, topic: Topic, *names: str, key: str = "") -> list[Position]:
    """Publish a message for each name, under itself as key or under `key`; returns when all are durable."""
    futures = [bus.publish(topic, key or name, CancelJob(job_id=name)) for name in names]
    return [future.result(timeout=20) for future in futures]


def name_of(record: Record) -> str:
    assert record.message is None or isinstance(record.message, CancelJob)
    return record.message.job_id if record.message else f"-{record.key}"


class Seen:
    """A handler that remembers names, in order, and fails or refuses on demand."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.fail_on: str | None = None
        self.poison: str | None = None
        self.failures = 0

    def __call__(self, records: Sequence[Record]) -> None:
        for record in records:
            if name_of(record) == self.poison:
                raise Poison(record, "made to be refused")
            if name_of(record) == self.fail_on:
                self.failures += 1
                raise ConnectionError("the database is away")
        self.names += [name_of(record) for record in records]

    def one(self, record: Record) -> None:
        self([record])


def test_a_group_sees_every_record_in_order(bus: Bus, events: Topic) -> None:
    seen = Seen()
    put(bus, events, *"abc", key="job")
    bus.subscribe(events, "g", seen)
    put(bus, events, *"def", key="job")
    eventually(lambda: seen.names == list("abcdef"))


def test_positions_of_a_key_grow_and_arrive_with_the_records(bus: Bus, events: Topic) -> None:
    positions = put(bus, events, *"abcdefgh", key="job")
    assert positions == sorted(set(positions))
    assert [Position.parse(str(position)) for position in positions] == positions
    records: list[Record] = []
    bus.subscribe(events, "g", records.extend)
    eventually(lambda: [record.position for record in records] == positions)
    assert {(record.topic, record.key) for record in records} == {(events, "job")}


def test_concurrent_publishers_keep_the_order_of_their_keys(connect: Callable[[], Bus], events: Topic) -> None:
    buses = [connect(), connect()]
    with ThreadPoolExecutor(8) as threads:
        for worker in range(8):
            threads.submit(put, buses[worker % 2], events, *map(str, range(50)), key=str(worker))
    by_key: dict[str, list[str]] = defaultdict(list)

    def note(records: Sequence[Record]) -> None:
        for record in records:
            by_key[record.key].append(name_of(record))

    buses[0].subscribe(events, "g", note, max_batch=7)
    eventually(lambda: sum(map(len, by_key.values())) == 400)
    assert all(names == list(map(str, range(50))) for names in by_key.values())


def test_every_group_sees_everything_from_the_earliest_kept(bus: Bus, events: Topic) -> None:
    first, late = Seen(), Seen()
    bus.subscribe(events, "first", first)
    put(bus, events, *"abc")
    eventually(lambda: sorted(first.names) == list("abc"))
    bus.subscribe(events, "late", late)
    eventually(lambda: sorted(late.names) == list("abc"))


def test_what_is_acknowledged_does_not_come_again(connect: Callable[[], Bus], events: Topic) -> None:
    before, after = Seen(), Seen()
    old = connect()
    old.subscribe(events, "g", before)
    put(old, events, *"abc")
    eventually(lambda: old.lag(events, "g") == 0)
    old.close()
    new = connect()
    new.subscribe(events, "g", after)
    put(new, events, "d")
    eventually(lambda: after.names)
    assert after.names == ["d"]
    assert sorted(before.names) == list("abc")


def test_two_consumers_of_a_group_share_the_work_and_keep_the_order(connect: Callable[[], Bus], events: Topic) -> None:
    buses = [connect(), connect()]
    handled: list[tuple[str, str]] = []

    def note(records: Sequence[Record]) -> None:
        handled.extend((record.key, name_of(record)) for record in records)

    subscriptions = [bus.subscribe(events, "g", note, max_batch=3) for bus in buses]
    for key in "xy":
        put(buses[0], events, *map(str, range(30)), key=key)
    eventually(lambda: len(set(handled)) == 60)
    subscriptions[0].close()
    put(buses[0], events, "last", key="x")
    eventually(lambda: ("x", "last") in handled)
    first_times = list(dict.fromkeys(handled))
    assert [name for key, name in first_times if key == "x"] == [*map(str, range(30)), "last"]


def test_a_failing_handler_pauses_and_nothing_overtakes_what_failed(bus: Bus, events: Topic) -> None:
    seen = Seen()
    seen.fail_on = "b"
    put(bus, events, *"abc", key="job")
    bus.subscribe(events, "g", seen, max_batch=1)
    eventually(lambda: seen.failures >= 3)
    assert seen.names == ["a"]
    assert bus.lag(events, "g") == 2
    seen.fail_on = None
    eventually(lambda: seen.names == list("abc"))
    eventually(lambda: bus.lag(events, "g") == 0)
    assert bus.dlq_depth(events) == 0


def test_close_does_not_wait_for_a_failing_handler_to_succeed(connect: Callable[[], Bus], events: Topic) -> None:
    failing, next_life = Seen(), Seen()
    failing.fail_on = "a"
    bus = connect()
    put(bus, events, "a")
    subscription = bus.subscribe(events, "g", failing)
    eventually(lambda: failing.failures)
    subscription.close()
    failures = failing.failures
    connect().subscribe(events, "g", next_life)
    eventually(lambda: next_life.names == ["a"])
    assert failing.failures == failures


def test_close_returns_when_no_handler_runs_any_more(bus: Bus, events: Topic) -> None:
    entered, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def slow(_: Sequence[Record]) -> None:
        entered.set()
        go_on.wait(10)
        done.set()

    subscription = bus.subscribe(events, "g", slow)
    put(bus, events, "a")
    assert entered.wait(10)
    closer = threading.Thread(target=subscription.close)
    closer.start()
    assert not done.is_set()
    go_on.set()
    closer.join(10)
    assert done.is_set()
    assert not closer.is_alive()
    assert bus.lag(events, "g") == 0  # what was handled before the end is acknowledged


def test_a_handler_may_publish_and_may_close_its_own_subscription(bus: Bus, events: Topic, commands: Topic) -> None:
    answers = Seen()

    def answer(records: Sequence[Record]) -> None:
        put(bus, commands, *(name_of(record) for record in records))
        subscription.close()

    subscription = bus.subscribe(events, "g", answer)
    bus.subscribe(commands, "g", answers)
    put(bus, events, "a")
    eventually(lambda: answers.names == ["a"])


def test_a_bus_holds_on_to_no_subscription_that_was_closed(bus: Bus, events: Topic, table: Topic) -> None:
    closed = [bus.subscribe(events, "g", Seen()), bus.follow(table, Seen().one)]
    for subscription in closed:
        subscription.close()
    left = [weakref.ref(subscription) for subscription in closed]
    bus.subscribe(events, "g", Seen())
    del closed, subscription
    eventually(lambda: gc.collect() >= 0 and not any(one() for one in left))


def test_poison_goes_to_the_dlq_and_the_rest_goes_on(bus: Bus, events: Topic) -> None:
    seen, buried = Seen(), Seen()
    seen.poison = "b"
    put(bus, events, *"abc", key="job")
    bus.subscribe(events, "g", seen)
    eventually(lambda: seen.names == list("ac"))
    eventually(lambda: bus.lag(events, "g") == 0)
    assert bus.dlq_depth(events) == 1
    bus.subscribe(events.dlq, "undertaker", buried)
    eventually(lambda: buried.names == ["b"])


@pytest.mark.parametrize("raw", [b"\xff\xfe", b"[1]", b'{"type": "CancelJob"}'], ids=["no JSON", "a list", "no id"])
def test_what_is_no_message_is_shown_and_goes_to_the_dlq(
    bus: Bus, world: BusWorld, commands: Topic, raw: bytes
) -> None:
    seen, broken = Seen(), list[BrokenRecord]()
    put(bus, commands, "a", key="job")
    world.put_raw(commands, "job", raw)
    put(bus, commands, "b", key="job")
    bus.subscribe(commands, "g", seen, on_broken=broken.append)
    eventually(lambda: seen.names == ["a", "b"])
    assert [(one.key, one.raw, one.envelope) for one in broken] == [("job", raw, None)]
    assert broken[0].reason
    assert bus.dlq_depth(commands) == 1
    eventually(lambda: bus.lag(commands, "g") == 0)


def test_a_message_whose_body_does_not_fit_still_shows_its_envelope(bus: Bus, world: BusWorld, commands: Topic) -> None:
    wire = orjson.loads(CancelJob(job_id="a", tenant="acme").encode())
    world.put_raw(commands, "a", orjson.dumps({**wire, "body": {"job_id": None}}))
    broken: list[BrokenRecord] = []
    bus.subscribe(commands, "g", Seen(), on_broken=broken.append)
    eventually(lambda: broken)
    assert broken[0].envelope is not None
    assert (broken[0].envelope.tenant, broken[0].envelope.type) == ("acme", "CancelJob")
    assert "job_id" in broken[0].reason


def test_a_broken_record_waits_until_on_broken_has_dealt_with_it(bus: Bus, world: BusWorld, commands: Topic) -> None:
    seen, tries = Seen(), Counter[str]()

    def fail_twice(record: BrokenRecord) -> None:
        tries[record.key] += 1
        if tries[record.key] < 3:
            raise ConnectionError("the database is away")

    world.put_raw(commands, "job", b"broken")
    put(bus, commands, "after", key="job")
    bus.subscribe(commands, "g", seen, on_broken=fail_twice)
    eventually(lambda: seen.names == ["after"])
    assert tries["job"] == 3
    assert bus.dlq_depth(commands) == 1


def unknown() -> bytes:
    return orjson.dumps({**orjson.loads(CancelJob(job_id="x").encode()), "type": "FromANewerVersion"})


def test_an_unknown_command_pauses_until_a_newer_version_comes(bus: Bus, world: BusWorld, commands: Topic) -> None:
    seen = Seen()
    put(bus, commands, "a", key="job")
    world.put_raw(commands, "job", unknown())
    put(bus, commands, "b", key="job")
    bus.subscribe(commands, "g", seen)
    eventually(lambda: bus.lag(commands, "g") == 2)
    assert seen.names == ["a"]
    assert bus.dlq_depth(commands) == 0


def test_an_unknown_event_is_skipped(bus: Bus, world: BusWorld, events: Topic) -> None:
    seen = Seen()
    put(bus, events, "a", key="job")
    world.put_raw(events, "job", unknown())
    put(bus, events, "b", key="job")
    bus.subscribe(events, "g", seen)
    eventually(lambda: seen.names == ["a", "b"])
    eventually(lambda: bus.lag(events, "g") == 0)
    assert bus.dlq_depth(events) == 0


def test_lag_counts_what_a_group_has_not_acknowledged(bus: Bus, events: Topic) -> None:
    assert bus.lag(events, "g") == 0
    put(bus, events, *"abc")
    assert bus.lag(events, "g") == 3
    assert bus.dlq_depth(events) == 0
    bus.ping()


def test_a_follower_sees_the_latest_of_every_key_then_every_change(bus: Bus, table: Topic) -> None:
    put(bus, table, "old", "new", key="x")
    put(bus, table, "y")
    put(bus, table, "z")
    bus.publish(table, "z", None).result(timeout=20)
    seen, caught_up = Seen(), list[list[str]]()
    bus.follow(table, seen.one, lambda: caught_up.append(list(seen.names)))
    eventually(lambda: caught_up)
    assert {name for name in caught_up[0] if name != "-z"} == {"new", "y"}
    put(bus, table, "newer", key="x")
    bus.publish(table, "y", None).result(timeout=20)
    put(bus, table, "again", key="z")
    eventually(lambda: sorted(seen.names[-3:]) == ["-y", "again", "newer"])  # only a key has an order
    assert len(caught_up) == 1


def test_a_follower_of_an_empty_table_is_caught_up_at_once(bus: Bus, table: Topic) -> None:
    seen, caught_up = Seen(), list[int]()
    bus.follow(table, seen.one, lambda: caught_up.append(1))
    eventually(lambda: caught_up)
    put(bus, table, "a")
    eventually(lambda: seen.names == ["a"])


def test_every_follower_sees_everything(connect: Callable[[], Bus], table: Topic) -> None:
    first, second = Seen(), Seen()
    bus = connect()
    bus.follow(table, first.one)
    put(bus, table, *"abc")
    connect().follow(table, second.one)
    put(bus, table, "d")
    eventually(lambda: sorted(first.names) == sorted(second.names) == list("abcd"))


def test_a_follower_is_shown_again_what_it_could_not_take(bus: Bus, table: Topic) -> None:
    seen = Seen()
    seen.fail_on = "a"
    bus.follow(table, seen.one)
    put(bus, table, "a", key="x")
    eventually(lambda: seen.failures >= 2)
    put(bus, table, "b", key="x")
    assert seen.names == []
    seen.fail_on = None
    eventually(lambda: seen.names == ["a", "b"])


def test_a_follower_passes_over_what_does_not_decode(bus: Bus, world: BusWorld, table: Topic) -> None:
    put(bus, table, "a")
    world.put_raw(table, "broken", b"\xff")
    world.put_raw(table, "newer", unknown())
    seen, caught_up = Seen(), list[int]()
    bus.follow(table, seen.one, lambda: caught_up.append(1))
    put(bus, table, "b")
    eventually(lambda: seen.names == ["a", "b"] and caught_up)


def test_a_table_with_a_retention_drops_old_keys(bus: Bus, table: Topic) -> None:
    fleeting = replace(table, retention=timedelta(seconds=2))
    put(bus, fleeting, "old")

    def only_new() -> bool:
        seen, caught_up = Seen(), list[int]()
        put(bus, fleeting, "new")
        following = bus.follow(fleeting, seen.one, lambda: caught_up.append(1))
        eventually(lambda: caught_up)
        following.close()
        return seen.names == ["new"]

    eventually(only_new)


def test_only_a_table_can_be_followed(bus: Bus, events: Topic) -> None:
    with pytest.raises(IncompatibleBus, match="subscribe"):
        bus.follow(events, Seen().one)


def test_a_closed_bus_takes_nothing(bus: Bus, events: Topic) -> None:
    bus.close()
    with pytest.raises(BusUnavailable):
        bus.publish(events, "a", CancelJob(job_id="a")).result(timeout=1)
