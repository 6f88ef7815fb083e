"""A Kafka that asks for a password, with and without TLS: all works with the right one, and no error tells it."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from kafka.admin import ACLOperation, ResourceType

from shared import bus as buses
from shared import requests as all_requests
from shared.bus.kafka import KafkaBus
from shared.bus.kafka.cluster import Cluster
from shared.bus.kafka.topics import create_topics, group_id
from shared.bus.port import BusRefuses, BusUnavailable
from shared.contracts.inference import Cancel
from shared.contracts.jobs import CancelJob
from shared.contracts.topics import Topic
from shared.kafka.address import Address
from shared.requests.port import RequestsUnavailable
from shared.settings import Settings, SettingsError
from tests.contract.test_bus import Seen, put
from tests.guarded_kafka import MECHANISMS, PASSWORD, GuardedKafka, guarded_kafka
from tests.waiting import eventually


@pytest.fixture(scope="module")
def guarded() -> Iterator[GuardedKafka]:
    with guarded_kafka() as server:
        yield server


@pytest.fixture(params=itertools.product(MECHANISMS, [True, False]), ids=str)
def url(guarded: GuardedKafka, request: pytest.FixtureRequest) -> str:
    mechanism, tls = request.param
    return guarded.url(mechanism, tls=tls)


def test_a_bus_works_with_the_right_password(url: str) -> None:
    events = Topic(f"{uuid4().hex}.events", timedelta(days=1), 2)
    table = Topic(f"{uuid4().hex}.state", None, 2, compacted=True)
    create_topics(url, [events, table])
    bus, seen, followed = buses.connect(url, "test"), Seen(), Seen()
    put(bus, events, "a")
    put(bus, table, "b")
    bus.subscribe(events, "g", seen)
    bus.follow(table, followed.one)
    eventually(lambda: (seen.names, followed.names) == (["a"], ["b"]))
    eventually(lambda: bus.lag(events, "g") == 0)
    bus.close()


async def test_requests_work_with_the_right_password(url: str) -> None:
    await asyncio.to_thread(all_requests.prepare, url)
    carrier = all_requests.connect(url)
    async with carrier.inbox("replica") as inbox, asyncio.timeout(30):
        await carrier.send("replica", Cancel("1", 1))
        assert await anext(inbox) == Cancel("1", 1)
    await carrier.close()


@pytest.mark.parametrize(
    ("wrong", "why"),
    [({"password": f"not-{PASSWORD}"}, "(?i)authenticat"), ({"ca": False}, "certificate")],
    ids=["password", "authority"],
)
async def test_who_is_not_let_in_is_told_so_without_the_password(
    guarded: GuardedKafka, wrong: dict[str, object], why: str
) -> None:
    url = guarded.url("PLAIN", tls=True, **wrong)  # type: ignore[arg-type]
    bus, carrier = buses.connect(url, "test"), all_requests.connect(url)
    with pytest.raises(BusUnavailable, match=why) as asked:
        bus.ping()
    with pytest.raises(BusUnavailable) as made:
        create_topics(url)
    with pytest.raises(RequestsUnavailable) as sent:
        await carrier.send("replica", Cancel("1", 1))
    assert not [error for error in (asked, made, sent) if PASSWORD in str(error.value) or url in str(error.value)]
    bus.close()
    await carrier.close()


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_start_with_a_wrong_password_ends_with_a_sentence(guarded: GuardedKafka, mechanism: str) -> None:
    url = guarded.url(mechanism, tls=False, password=f"not-{PASSWORD}")
    bus = buses.connect(url, "test")
    said = rf"^LLMOS_BUS_URL: 127\.0\.0\.1:{guarded.port} refuses: Authentication failed"
    with pytest.raises(SettingsError, match=said) as ended:
        buses.need(bus, Settings()).there()
    with pytest.raises(BusRefuses):
        bus.ping()
    assert PASSWORD not in str(ended.value)
    bus.close()


def test_topics_are_not_made_with_a_wrong_password_and_a_sentence_says_so(guarded: GuardedKafka) -> None:
    url = guarded.url("SCRAM-SHA-256", tls=False, password="wrong")
    with pytest.raises(SettingsError, match=r"^LLMOS_BUS_URL: .* refuses: Authentication failed"):
        buses.prepare(url)
    with pytest.raises(SettingsError, match=r"^LLMOS_REQUESTS_URL: .* refuses: Authentication failed"):
        all_requests.prepare(url)


def test_a_publish_that_is_not_let_in_fails_in_time(guarded: GuardedKafka) -> None:
    bus = buses.connect(guarded.url("SCRAM-SHA-512", tls=False, password="wrong"), "test")
    future = bus.publish(Topic("jobs.events", None), "a", CancelJob(job_id="a"))
    with pytest.raises(BusUnavailable, match="did not take the message"):
        future.result(60)
    bus.close()


def topic_with(guarded: GuardedKafka, *rights: ACLOperation) -> tuple[Topic, str]:
    """A topic that somebody else has made, and how one who has only these rights on it reaches it."""
    events = Topic(f"{uuid4().hex}.events", timedelta(days=1), 2)
    create_topics(guarded.server.url, [events])
    for name in (events.name, events.dlq.name):
        guarded.allow(ResourceType.TOPIC, name, *rights)
    return events, guarded.url("PLAIN", tls=False)


@pytest.mark.parametrize(
    ("right", "lacking"),
    [(ACLOperation.DESCRIBE_CONFIGS, "Describe"), (ACLOperation.WRITE, "DescribeConfigs")],
    ids=["describe", "describe-configs"],
)
def test_a_start_without_a_right_ends_with_a_sentence_that_names_it(
    guarded: GuardedKafka, right: ACLOperation, lacking: str
) -> None:
    events, url = topic_with(guarded, right)
    bus = KafkaBus(url, "test", topics=[events])
    said = rf"^LLMOS_BUS_URL: the Kafka user has no right to {lacking} on topic {events.name}: its ACLs must allow it"
    with pytest.raises(SettingsError, match=said):
        buses.need(bus, Settings()).there()
    with pytest.raises(BusRefuses, match=f"no right to {lacking}"):
        create_topics(url, [events])
    bus.close()


def test_settings_that_we_may_not_change_are_no_success(guarded: GuardedKafka) -> None:
    events, url = topic_with(guarded, ACLOperation.DESCRIBE, ACLOperation.DESCRIBE_CONFIGS)
    create_topics(url, [events])
    with pytest.raises(BusRefuses, match=f"no right to AlterConfigs on topic {events.name}"):
        create_topics(url, [replace(events, retention=timedelta(hours=1))])


def test_a_group_that_is_not_let_in_says_so_once_and_once_that_it_is(
    guarded: GuardedKafka, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "llmos.bus")
    events, group, seen = Topic(f"{uuid4().hex}.events", timedelta(days=1), 2), uuid4().hex, Seen()
    create_topics(guarded.server.url, [events])
    guarded.allow(ResourceType.GROUP, group_id(events, group), ACLOperation.DESCRIBE)
    tries, check = list[str](), Cluster.check

    def count(cluster: Cluster, topic: Topic) -> UUID:
        tries.append(topic.name)
        return check(cluster, topic)

    monkeypatch.setattr(Cluster, "check", count)
    bus = KafkaBus(guarded.url("PLAIN", tls=False), "test", topics=[events])
    put(bus, events, "a")
    bus.subscribe(events, group, seen)
    eventually(lambda: len(tries) >= 4, 30)
    guarded.allow(ResourceType.GROUP, group_id(events, group), ACLOperation.READ)
    eventually(lambda: seen.names == ["a"], 30)
    bus.close()
    said = [record.getMessage().partition(f":{group} ")[2] for record in caplog.records if group in record.getMessage()]
    assert [line.partition(":")[0] for line in said] == ["waits, and is tried again until it works", "works again"]


def test_an_address_says_how_to_reach_its_servers(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.touch()
    plain = Address.parse("kafka://a,b:1")
    assert (plain.servers, plain.options) == (["a:9092", "b:1"], {"security_protocol": "PLAINTEXT"})
    tls = Address.parse(f"kafkas://a/?ca={ca}&cert={ca}&key={ca}")
    files = dict.fromkeys(("ssl_cafile", "ssl_certfile", "ssl_keyfile"), str(ca))
    assert tls.options == {"security_protocol": "SSL", **files}
    login = Address.parse("kafkas://me%40company:s3cret%3A%2F%3F%25@a,b?sasl=SCRAM-SHA-512")
    assert login.options == {
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "me@company",
        "sasl_plain_password": PASSWORD,
    }
    assert Address.parse("kafkas://me:x@a").options["sasl_mechanism"] == "PLAIN"
    assert "s3cret" not in f"{login!r} {login}"


def test_an_authority_that_is_nowhere_is_refused_at_the_start() -> None:
    with pytest.raises(SettingsError, match="ca names no file that is there"):
        buses.connect("kafkas://host:9092?ca=/nowhere/ca.pem", "test")
