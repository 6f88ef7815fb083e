"""Topics are made by `llmos admin init`, and keep the number of partitions and the cleanup that they were made with."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kafka import KafkaAdminClient
from kafka import errors as kafka_errors
from kafka.admin import AlterConfigOp, ConfigResource, ConfigResourceType

from shared.kafka.clients import Refused, admin

CLEANUP = "cleanup.policy"
FLUSH = "flush.messages"
MOST_REPLICAS = 3
READY_S = 30.0


class WrongTopics(Exception):
    """Topics on the server have another shape than they should; the message names them."""


class NoSettings(kafka_errors.KafkaError):  # type: ignore[misc]
    """A topic has no settings yet, or does not take ours; the message names it."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class TopicSpec:
    """One topic as it should be. `configs` are Kafka's own names and values."""

    name: str
    partitions: int
    cleanup: str
    configs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Made:
    """What `make_topics` did."""

    created: Sequence[str]
    kept: Sequence[str]


def make_topics(url: str, specs: Sequence[TopicSpec], *, durable: bool = True) -> Made:
    """Make what is not there, bring the settings of the rest up to date. Raises WrongTopics, KafkaError.

    `durable`: an acknowledged message survives the loss of a server where three have the topic, and of power where one
    has it, since that one then writes to the disk before it answers.
    """
    with admin(url, "llmos-init") as client:
        there = existing(client, [spec.name for spec in specs])
        created = _create(client, [spec for spec in specs if spec.name not in there], durable=durable)
        kept = [spec for spec in specs if spec.name not in created]
        if kept:
            check(client, kept)
            _bring_up_to_date(client, kept, durable=durable)
        return Made(created, [spec.name for spec in kept])


def existing(client: KafkaAdminClient, names: Iterable[str]) -> dict[str, Any]:
    """What the server says of each of these topics that it has. Raises Refused, KafkaError."""
    found = {topic["name"]: topic for topic in client.describe_topics(list(names))}
    for name, topic in found.items():
        if topic["error_code"] == kafka_errors.TopicAuthorizationFailedError.errno:
            raise _no_right("Describe", name)
    return {name: topic for name, topic in found.items() if not topic["error_code"]}


def cleanup_of(client: KafkaAdminClient, names: Sequence[str]) -> dict[str, set[str]]:
    """How each topic is cleaned: `delete`, `compact`, or both. Raises Refused, NoSettings where one was just made."""
    found = _configs(client, names, [CLEANUP])
    if unknown := [name for name in names if CLEANUP not in found[name]]:
        _insist_on("DescribeConfigs", client, unknown)
        raise NoSettings(f"topic {unknown[0]} has no settings yet: try again")
    return {name: set(found[name][CLEANUP]["value"].split(",")) for name in names}


def check(client: KafkaAdminClient, specs: Sequence[TopicSpec]) -> None:
    """Raises WrongTopics with a sentence when partitions or cleanup of one are others."""
    names = [spec.name for spec in specs]
    there, cleanup = existing(client, names), cleanup_of(client, names)
    wrong = [
        f"{spec.name} has {len(there[spec.name]['partitions'])} partitions and the cleanup "
        f"{','.join(sorted(cleanup[spec.name]))} instead of {spec.partitions} and {spec.cleanup}"
        for spec in specs
        if len(there[spec.name]["partitions"]) != spec.partitions or cleanup[spec.name] != set(spec.cleanup.split(","))
    ]
    if wrong:
        raise WrongTopics(
            f"{'; '.join(wrong)}: a key would move, or be lost. Delete these topics if nothing in them is needed, or "
            "use another Kafka"
        )


def _settings(spec: TopicSpec, replicas: int, *, durable: bool) -> dict[str, str]:
    """What the topic is told of where `replicas` servers have it."""
    configs = {"min.insync.replicas": str(max(1, min(MOST_REPLICAS, replicas) - 1) if durable else 1)}
    if durable and replicas == 1:
        configs[FLUSH] = "1"
    return {**configs, **spec.configs, CLEANUP: spec.cleanup}


def _create(client: KafkaAdminClient, specs: Sequence[TopicSpec], *, durable: bool) -> list[str]:
    """The names of those that were made here; others may come into being at the same time."""
    if not specs:
        return []
    replicas = min(MOST_REPLICAS, len(client.describe_cluster()["brokers"]))
    wanted = {
        spec.name: {
            "num_partitions": spec.partitions,
            "replication_factor": replicas,
            "configs": _settings(spec, replicas, durable=durable),
        }
        for spec in specs
    }
    created = []
    for topic in client.create_topics(wanted, raise_errors=False)["topics"]:
        error = kafka_errors.for_code(topic["error_code"])
        if error is kafka_errors.NoError:
            created.append(topic["name"])
        elif issubclass(error, kafka_errors.AuthorizationError):
            raise _no_right("Create", topic["name"])
        elif error is not kafka_errors.TopicAlreadyExistsError:
            raise error(f"topic {topic['name']}: {topic['error_message']}")
    client.wait_for_topics(list(wanted), timeout_ms=READY_S * 1000)
    _wait_for_configs(client, list(wanted))
    return created


def _wait_for_configs(client: KafkaAdminClient, names: Sequence[str]) -> None:
    """A new topic may be known before its settings are."""
    deadline = time.monotonic() + READY_S
    while True:
        try:
            cleanup_of(client, names)
            return
        except NoSettings:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.1)


def _bring_up_to_date(client: KafkaAdminClient, specs: Sequence[TopicSpec], *, durable: bool) -> None:
    names = [spec.name for spec in specs]
    there = existing(client, names)
    wanted = {spec.name: _settings(spec, _replicas(there[spec.name]), durable=durable) for spec in specs}
    now = _configs(client, names, sorted({FLUSH, *(key for configs in wanted.values() for key in configs)}))
    changes = [
        ConfigResource(ConfigResourceType.TOPIC, name, differing)
        for name, configs in wanted.items()
        if (differing := _differing(configs, now[name]))
    ]
    if not changes:
        return
    answers = client.alter_configs(changes)["topic"]
    if refused := [name for name, answer in answers.items() if answer != "OK"]:
        _insist_on("AlterConfigs", client, refused)
        raise NoSettings(f"topic {refused[0]} does not take its settings: {answers[refused[0]]}")


def _replicas(topic: Mapping[str, Any]) -> int:
    """How many servers have each partition of it at least, whether they are up or not."""
    return min(len(partition["replica_nodes"]) for partition in topic["partitions"])


def _differing(wanted: Mapping[str, str], now: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be changed. Writing each message to the disk is taken back where one server alone has the topic no
    more: only what was set here, not what the servers do by themselves."""
    differing: dict[str, Any] = {
        key: value for key, value in wanted.items() if key not in now or now[key]["value"] != value
    }
    flush = now.get(FLUSH, {"value": None})
    if FLUSH not in wanted and flush["value"] == "1" and flush["config_source"] == "DYNAMIC_TOPIC_CONFIG":
        differing[FLUSH] = AlterConfigOp.DELETE, None
    return differing


def _configs(client: KafkaAdminClient, names: Sequence[str], keys: Sequence[str]) -> dict[str, dict[str, Any]]:
    resources = [ConfigResource(ConfigResourceType.TOPIC, name, dict.fromkeys(keys)) for name in names]
    found = client.describe_configs(resources, config_filter="all").get("topic", {})
    return {name: dict(found.get(name, {})) for name in names}


def _insist_on(right: str, client: KafkaAdminClient, names: Sequence[str]) -> None:
    """Raises Refused where we lack it on one: the library does not tell why a topic's settings were not told."""
    for name, topic in existing(client, names).items():
        rights = {known.replace("_", "") for known in topic.get("authorized_operations") or ()}
        if rights and right.upper() not in rights:
            raise _no_right(right, name)


def _no_right(right: str, topic: str) -> Refused:
    return Refused(f"the Kafka user has no right to {right} on topic {topic}: its ACLs must allow it")
