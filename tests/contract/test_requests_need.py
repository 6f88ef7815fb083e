"""Whether the server for requests is there, as a start and `/readyz` ask."""

from __future__ import annotations

import pytest

from shared import requests
from shared.requests.port import RequestsUnavailable, RequestsUninitialized
from shared.settings import Settings, SettingsError
from tests.kafka_server import mortal_kafka
from tests.servers import valkey


def test_kafka_is_there_once_the_topic_is_and_until_it_goes_away() -> None:
    with mortal_kafka() as server:
        with pytest.raises(RequestsUninitialized, match="llmos admin init"):
            requests.ping(server.url)
        assert not requests.need(Settings(requests_url=server.url)).there()
        requests.prepare(server.url)
        requests.ping(server.url)
        assert requests.need(Settings(requests_url=server.url)).there()
        server.kill()
        with pytest.raises(RequestsUnavailable):
            requests.ping(server.url)


def test_valkey_is_there_until_it_goes_away_and_names_the_setting_where_it_refuses() -> None:
    with valkey(durable=False) as server:
        requests.ping(server.unix_url)
        with server.client() as client:
            client.config_set("requirepass", "secret")
        with pytest.raises(SettingsError, match="LLMOS_REQUESTS_URL"):
            requests.ping(server.unix_url)
        server.kill()
        with pytest.raises(RequestsUnavailable):
            requests.ping(server.unix_url)
