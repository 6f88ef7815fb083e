"""What is wrong with an address is said without it: the rest of it may be a password."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from shared import bus, doorbell, replies, requests, store, valkey
from shared.db import open_database
from shared.kafka.address import Address
from shared.settings import Settings, SettingsError
from tests.databases import NewDatabase

SECRET = "s3cret"


def connect_store(url: str) -> object:
    return store.connect(Settings(store_url=url))


CONNECTS: list[Callable[[str], object]] = [
    lambda url: bus.connect(url, "test"),
    requests.connect,
    replies.connect,
    doorbell.connect,
    connect_store,
    valkey.redis_url,
    valkey.client,
    valkey.async_client,
    Address.parse,
    open_database,
]


@pytest.mark.parametrize("connect", CONNECTS)
@pytest.mark.parametrize("url", [f"amqp://:{SECRET}@host:1/0", f":{SECRET}@host:1", f"{SECRET}@host/redis://x"])
def test_an_address_of_no_known_kind_is_refused_without_being_repeated(
    connect: Callable[[str], object], url: str
) -> None:
    with pytest.raises(SettingsError) as refused:
        connect(url)
    assert SECRET not in str(refused.value)
    assert ("amqp" in str(refused.value)) == url.startswith("amqp")


@pytest.mark.parametrize(
    ("connect", "url"),
    [
        (valkey.client, f"redis://:{SECRET}/0@host:6379"),
        (valkey.async_client, f"redis://:{SECRET}/0@host:6379"),
        (valkey.client, f"redis://host:6379/0?socket_timeout={SECRET}"),
        (doorbell.connect, f"redis://:{SECRET}@host:63x/0"),
        (Address.parse, f"kafka://me:{SECRET}@host:port"),
        (Address.parse, f"kafka://{SECRET}@host:9092"),
        (Address.parse, f"kafkas://me:pass?{SECRET}@host:9092"),
        (Address.parse, f"kafkas://me:12?{SECRET}@host:9092"),
        (Address.parse, f"kafkas://me:pass@host:9092?password={SECRET}"),
        (Address.parse, f"kafkas://me:{SECRET}@host:9092?sasl=GSSAPI"),
        (Address.parse, f"kafkas://me:{SECRET}@host:9092?ca=/nowhere/ca.pem"),
        (Address.parse, f"kafka://me:{SECRET}@host:9092?ca=/nowhere/ca.pem"),
        (Address.parse, "kafkas://host:9092?sasl=PLAIN"),
        (Address.parse, f"kafka://host/{SECRET}"),
        (Address.parse, f"kafka://host:9092,{SECRET}/host:9092"),
        (Address.parse, f"kafka://host {SECRET}:9092"),
        (connect_store, f"s3://me:{SECRET}@host:9000/bucket"),
        (open_database, f"postgresql+psycopg://me:{SECRET}@host:54x/db"),
        (open_database, f"postgresql+psycopg://me:pass@host:{SECRET}/db"),
        (open_database, f"sqlite:{SECRET}"),
    ],
)
def test_an_address_that_is_written_wrong_is_refused_without_being_repeated(
    connect: Callable[[str], object], url: str
) -> None:
    with pytest.raises(SettingsError) as refused:
        connect(url)
    assert SECRET not in str(refused.value)
    assert refused.value.__cause__ is None, "a traceback shows it too"


@pytest.mark.parametrize(
    ("connect", "url", "setting"),
    [
        (lambda url: bus.connect(url, "test"), "kafka://host:port", "LLMOS_BUS_URL"),
        (lambda url: bus.connect(url, "test"), "valkey://host:port", "LLMOS_BUS_URL"),
        (bus.prepare, "kafka://host:port", "LLMOS_BUS_URL"),
        (bus.prepare, "valkey://host:port", "LLMOS_BUS_URL"),
        (requests.connect, "kafka://host:port", "LLMOS_REQUESTS_URL"),
        (requests.connect, "redis://host:port", "LLMOS_REQUESTS_URL"),
        (requests.prepare, "kafka://host:port", "LLMOS_REQUESTS_URL"),
        (replies.connect, "redis://host:port", "LLMOS_REDIS_URL"),
        (replies.ping, "redis://host:port", "LLMOS_REDIS_URL"),
        (doorbell.connect, "redis://host:port", "LLMOS_REDIS_URL"),
    ],
)
def test_an_address_that_is_written_wrong_is_refused_with_the_name_of_its_setting(
    connect: Callable[[str], object], url: str, setting: str
) -> None:
    kind, _, _ = url.partition("://")
    with pytest.raises(SettingsError, match=f"^{setting}: {kind}://… is no address of") as refused:
        connect(url)
    assert refused.value.__cause__ is None


def test_a_statement_that_fails_is_told_without_its_values(new_database: NewDatabase) -> None:
    engine = open_database(new_database("registry"))
    with pytest.raises(DBAPIError) as failed, engine.connect() as sql:
        sql.execute(text("SELECT * FROM nowhere WHERE name = :name"), {"name": SECRET})
    assert SECRET not in str(failed.value)
    engine.dispose()
