"""Inference requests to one replica's inbox. `connect` picks the adapter from the URL."""

from __future__ import annotations

from shared.requests.port import Requests, RequestsUnavailable
from shared.settings import Settings, SettingsError, naming, shown
from shared.starting import Need


@naming("LLMOS_REQUESTS_URL")
def connect(url: str) -> Requests:
    """The requests at `url`; nothing is sent yet. Raises SettingsError for a URL that names no adapter."""
    scheme = url.partition("://")[0]
    if scheme == "memory":
        from shared.requests.memory import connect_memory

        return connect_memory(url)
    if scheme in {"unix", "redis", "rediss"}:
        from shared.requests.valkey import ValkeyRequests

        return ValkeyRequests(url)
    if scheme in {"kafka", "kafkas"}:
        from shared.requests.kafka import KafkaRequests

        return KafkaRequests(url)
    raise SettingsError(
        f"LLMOS_REQUESTS_URL: {shown(url)} names no server for requests; use unix:///path, redis://host:port/0, "
        "kafka://host:port or memory://"
    )


@naming("LLMOS_REQUESTS_URL")
def prepare(url: str) -> list[str]:
    """Make the topics that requests at `url` need, where topics have to be made; their names.

    Raises RequestsUnavailable, SettingsError.
    """
    if url.partition("://")[0] not in {"kafka", "kafkas"}:
        return []
    from shared.requests.kafka.topic import create_topic

    return sorted(create_topic(url).created)


@naming("LLMOS_REQUESTS_URL")
def ping(url: str) -> None:
    """Raises RequestsUnavailable with a sentence when the server does not answer or lacks the topic, SettingsError
    when it refuses us or the topic has another shape."""
    scheme = url.partition("://")[0]
    if scheme in {"kafka", "kafkas"}:
        from shared.requests.kafka.topic import check_topic

        check_topic(url)
    elif scheme != "memory":
        import redis

        from shared import valkey

        try:
            valkey.ping(url)
        except redis.AuthenticationError as error:
            raise SettingsError(f"LLMOS_REQUESTS_URL: the server refuses: {error}") from None
        except (redis.RedisError, OSError) as error:
            raise RequestsUnavailable(f"the server for requests does not answer: {error}") from error


def need(settings: Settings) -> Need:
    """The server for requests, as a start needs it."""
    url = settings.effective_requests_url
    return Need("the server for requests", lambda: ping(url), (RequestsUnavailable,), settings.init_timeout_s)
