"""Whether the server for requests is there, as a start and `/readyz` ask."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from shared import requests
from shared.kafka.topics import make_topics
from shared.requests.kafka.topic import TOPIC
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


def test_a_topic_of_another_shape_ends_a_start_and_an_init_at_once(tmp_path: Path) -> None:
    with mortal_kafka() as server:
        make_topics(server.url, [replace(TOPIC, partitions=3)])
        clean = {name: value for name, value in os.environ.items() if not name.startswith("LLMOS_")}
        environment = {**clean, "LLMOS_HOME": str(tmp_path), "LLMOS_REQUESTS_URL": server.url}
        init = [sys.executable, "-m", "llmos", "admin", "init", "--wait", "600"]
        done = subprocess.run(init, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert "LLMOS_REQUESTS_URL: inference.requests has 3 partitions" in done.stderr
        assert done.returncode
        with pytest.raises(SettingsError, match=r"^LLMOS_REQUESTS_URL: inference\.requests has 3 partitions"):
            requests.need(Settings(requests_url=server.url)).there()


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
