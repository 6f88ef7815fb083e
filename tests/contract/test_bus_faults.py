"""What every bus with a server promises when that server, or a consumer, is killed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, wait
from datetime import timedelta

import pytest

from shared.bus.port import BusFull, BusUnavailable, Position
from shared.contracts.jobs import CancelJob
from shared.contracts.topics import Topic
from tests.contract.bus_worlds import MORTAL_WORLDS, MortalBusWorld
from tests.contract.test_bus import Seen, new_topic, put
from tests.waiting import eventually


@pytest.fixture(scope="module", params=MORTAL_WORLDS)
def world(request: pytest.FixtureRequest) -> Iterator[MortalBusWorld]:
    with MORTAL_WORLDS[request.param]() as world:
        yield world


@pytest.fixture
def events(world: MortalBusWorld) -> Topic:
    return new_topic(world, "events", timedelta(days=1))


@pytest.fixture
def table(world: MortalBusWorld) -> Topic:
    return new_topic(world, "state", None, compacted=True)


def test_what_is_published_survives_a_server_killed_right_after(world: MortalBusWorld, events: Topic) -> None:
    bus, seen = world.connect(), Seen()
    put(bus, events, *"abc", key="job")
    world.kill()
    world.restart()
    bus.subscribe(events, "g", seen)
    eventually(lambda: seen.names == list("abc"))
    bus.close()


def test_what_is_published_while_the_server_is_away_arrives_once_and_in_order(
    world: MortalBusWorld, events: Topic
) -> None:
    bus, seen = world.connect(delivery_timeout_s=60), Seen()
    bus.subscribe(events, "g", seen)
    put(bus, events, "before", key="job")
    world.kill()
    futures = [bus.publish(events, "job", CancelJob(job_id=str(n))) for n in range(100)]
    assert not any(future.done() for future in futures)
    world.restart()
    wait(futures, timeout=30)
    assert not any(future.exception() for future in futures)
    eventually(lambda: seen.names == ["before", *map(str, range(100))])
    bus.close()


def test_kills_in_the_middle_of_a_stream_of_messages_lose_and_reorder_nothing(
    world: MortalBusWorld, events: Topic
) -> None:
    bus, seen = world.connect(delivery_timeout_s=60), Seen()
    bus.subscribe(events, "g", seen, max_batch=16)
    futures: list[Future[Position]] = []
    for round_ in range(3):
        futures += [bus.publish(events, "job", CancelJob(job_id=f"{round_}-{n}")) for n in range(200)]
        eventually(futures[-100].done, timeout_s=30)
        world.kill()
        world.restart()
    wait(futures, timeout=30)
    sent = [f"{round_}-{n}" for round_ in range(3) for n in range(200)]
    eventually(lambda: list(dict.fromkeys(seen.names)) == sent, timeout_s=30)
    bus.close()


def test_a_server_that_stays_away_fails_the_publish_with_a_sentence(world: MortalBusWorld, events: Topic) -> None:
    bus = world.connect(delivery_timeout_s=0.3)
    world.kill()
    try:
        future = bus.publish(events, "job", CancelJob(job_id="a"))
        with pytest.raises(BusUnavailable, match="did not take the message"):
            future.result(timeout=10)
        with pytest.raises(BusUnavailable):
            bus.ping()
    finally:
        world.restart()
    eventually(lambda: bus.publish(events, "job", CancelJob(job_id="b")).exception(timeout=10) is None)
    bus.ping()
    bus.close()


def test_only_so_much_is_in_flight(world: MortalBusWorld, events: Topic) -> None:
    bus = world.connect(max_in_flight=10, delivery_timeout_s=60)
    put(bus, events, "first", key="job")
    world.kill()
    try:
        accepted = [bus.publish(events, "job", CancelJob(job_id=str(n))) for n in range(10)]
        with pytest.raises(BusFull, match="10 messages wait"):
            bus.publish(events, "job", CancelJob(job_id="one too many")).result(timeout=1)
    finally:
        world.restart()
    wait(accepted, timeout=30)
    put(bus, events, "last", key="job")
    bus.close()


def test_what_a_killed_consumer_held_goes_to_the_next_in_order(world: MortalBusWorld, events: Topic) -> None:
    bus, seen = world.connect(), Seen()
    put(bus, events, *"abcd", key="a")
    command = [
        sys.executable,
        "-m",
        "tests.contract.hanging_consumer",
        world.url,
        events.name,
        str(events.partitions),
        "g",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as victim:
        try:
            assert victim.stdout is not None
            assert victim.stdout.readline() == "a\n"
            bus.subscribe(events, "g", seen)
        finally:
            victim.kill()
    eventually(lambda: seen.names == list("abcd"), timeout_s=30)
    bus.close()


def test_a_subscription_goes_on_after_its_server_came_back(world: MortalBusWorld, events: Topic) -> None:
    bus, seen = world.connect(), Seen()
    bus.subscribe(events, "g", seen)
    put(bus, events, "a")
    eventually(lambda: seen.names == ["a"])
    world.kill()
    world.restart()
    put(bus, events, "b")
    eventually(lambda: seen.names[-1] == "b")
    bus.close()


def test_a_subscription_may_be_made_and_closed_while_the_server_is_away(world: MortalBusWorld, events: Topic) -> None:
    bus, seen = world.connect(), Seen()
    put(bus, events, "a")
    world.kill()
    try:
        bus.subscribe(events, "closed", seen).close()
        bus.subscribe(events, "g", seen)
    finally:
        world.restart()
    eventually(lambda: seen.names == ["a"])
    bus.close()


def test_a_follower_goes_on_after_its_server_came_back(world: MortalBusWorld, table: Topic) -> None:
    bus, seen, caught_up = world.connect(delivery_timeout_s=60), Seen(), list[int]()
    put(bus, table, "a", key="x")
    bus.follow(table, seen.one, lambda: caught_up.append(1))
    eventually(lambda: caught_up)
    world.kill()
    futures = [bus.publish(table, "x", CancelJob(job_id="b")), bus.publish(table, "y", CancelJob(job_id="c"))]
    world.restart()
    wait(futures, timeout=30)
    bus.publish(table, "x", None).result(timeout=20)
    eventually(lambda: "c" in seen.names and [name for name in seen.names if name != "c"] == ["a", "b", "-x"])
    assert len(caught_up) == 1
    late = Seen()
    world.connect().follow(table, late.one, lambda: caught_up.append(2))
    eventually(lambda: caught_up == [1, 2])
    assert late.names == ["c"]
    bus.close()
