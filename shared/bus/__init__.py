"""The durable bus. `connect` picks the adapter from the URL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from shared.bus.port import Bus, BusError, BusRefuses, IncompatibleBus
from shared.settings import Settings, SettingsError, naming, shown
from shared.starting import Need


@naming("LLMOS_BUS_URL")
def connect(url: str, client_id: str) -> Bus:
    """The bus at `url`; nothing is sent yet. Raises SettingsError for a URL that names no adapter."""
    scheme = url.partition("://")[0]
    if scheme == "memory":
        from shared.bus.memory import connect_memory

        return connect_memory(url)
    if scheme in {"valkey", "valkeys", "valkey+unix"}:
        from shared.bus.valkey import ValkeyBus

        return ValkeyBus(url, client_id)
    if scheme in {"kafka", "kafkas"}:
        from shared.bus.kafka import KafkaBus

        return KafkaBus(url, client_id)
    raise SettingsError(
        f"LLMOS_BUS_URL: {shown(url)} names no bus; use valkey+unix:///path, valkey://host:port, kafka://host:port "
        "or memory://"
    )


@naming("LLMOS_BUS_URL")
def prepare(url: str) -> list[str]:
    """Make the topics that the bus at `url` lacks, where topics have to be made; their names.

    Raises BusUnavailable where waiting helps, SettingsError where it does not: one has another shape, or the server
    refuses us.
    """
    if url.partition("://")[0] not in {"kafka", "kafkas"}:
        connect(url, "llmos-init").close()
        return []
    from shared.bus.kafka.topics import create_topics

    with _refusals_are_settings():
        return sorted(create_topics(url).created)


def check_access(bus: Bus) -> None:
    """At a start. Raises BusUnavailable where waiting helps, and SettingsError where it does not."""
    with _refusals_are_settings():
        bus.ping()


def need(bus: Bus, settings: Settings) -> Need:
    """The bus, as a start needs it."""
    return Need("the bus", lambda: check_access(bus), (BusError,), settings.init_timeout_s)


@contextmanager
def _refusals_are_settings() -> Iterator[None]:
    try:
        yield
    except (BusRefuses, IncompatibleBus) as error:
        raise SettingsError(f"LLMOS_BUS_URL: {error}") from None
