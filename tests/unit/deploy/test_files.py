"""The files of the cluster shape say the same as the code: settings, metrics, secrets."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter

from services.gateway.auth import OPEN
from services.inference.keeper import LAST_WORDS_S as KEEPERS_WORDS_S
from services.inference.main import LAST_WORDS_S as AGENTS_WORDS_S
from services.trainer.doorbell import STOP_TIMEOUT_S
from services.trainer.heartbeat import FAREWELL_TIMEOUT_S
from services.trainer.main import REPORT_TIME_S
from shared.bus.kafka.publisher import LATE_S
from shared.bus.publisher import DELIVERY_TIMEOUT_S
from shared.settings import EXAMPLE, PREFIX, Settings, SettingsError, load_settings
from tests.e2e.compose_file import ComposeFile

ROOT = Path(__file__).parents[3]
EXAMPLE_ENV = (ROOT / ".env.example").read_text()
COMPOSE_YML = (ROOT / "docker-compose.yml").read_text()
OF_THE_HOST = {"HOME", "HOST", "PORT", "URL", "LOG_FORMAT", "METRICS_PORT", "S3_SECURE", "BACKUP_S3_SECURE"}
"""Settings that the images or the compose file fix, or that only the command reads."""
MADE_FROM_OTHERS = {"BUS_URL", "REDIS_URL", "STORE_URL", "DB_URL", "S3_ACCESS_KEY", "S3_SECRET_KEY"}
MADE_FROM_OTHERS |= {"GATEWAY_DB_URL", "SCHEDULER_DB_URL", "REGISTRY_DB_URL"}
MADE_FROM_OTHERS |= {"BACKUP_S3_ACCESS_KEY", "BACKUP_S3_SECRET_KEY"}
METRIC = re.compile(r"\bllmos_[a-z_]+\b")
SUFFIX = re.compile(r"_(total|bucket|sum|count)$")


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(COMPOSE_YML)
    return found


def test_the_example_explains_every_setting_with_its_default() -> None:
    for name, field in Settings.model_fields.items():
        if name.upper() not in OF_THE_HOST | MADE_FROM_OTHERS:
            line = re.search(rf"^#?{PREFIX}{name.upper()}=(.*)$", EXAMPLE_ENV, re.MULTILINE)
            assert line, f"{PREFIX}{name.upper()} is not in .env.example"
            if name not in {"dev", "api_key", "requests_url", "node"}:
                default = str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
                assert line[1] == default, name


def test_what_the_example_shows_behind_a_sign_is_the_default() -> None:
    """Without the sign it changes nothing: neither what the compose file says, nor what a setting is."""
    shown = re.findall(r"^#(\w+)=(.*)$", EXAMPLE_ENV, re.MULTILINE)
    assert len(shown) > 50
    passed_on = {name for service in compose()["services"].values() for name in service.get("environment", {})}
    plain = filled({})
    for name, value in shown:
        assert name in passed_on or f"${{{name}:-" in COMPOSE_YML, f"nobody reads {name}"
        others = {service for service, text in filled({name: value}).items() if text != plain[service]}
        assert not others, f"{name}={value} changes {others}"


def test_the_example_says_where_the_profile_gpu_has_another_default() -> None:
    for name, default in re.findall(r"\$\{(\w+):-([^${}]+)\}", COMPOSE_YML):
        if not re.search(rf"^#?{name}={re.escape(default)}$", EXAMPLE_ENV, re.MULTILINE):
            comment = re.search(rf"((?:^#.*\n)+)#?{name}=", EXAMPLE_ENV, re.MULTILINE)
            assert comment, name
            assert default in comment[1] or name in {"LLMOS_DEV", "LLMOS_BUS_URL", "GRAFANA_PASSWORD"}, (name, default)


def filled(variables: dict[str, str]) -> dict[str, str]:
    """Each service of a machine without GPUs as it is with these variables."""
    file = ComposeFile(variables)
    plain = {name: {**service, "environment": None} for name, service in file.services.items()}
    return {
        name: file.filled(json.dumps([service, settings(file.environment(name))]))
        for name, service in plain.items()
        if not name.endswith("-gpu")
    }


def settings(environment: dict[str, str]) -> dict[str, str]:
    """Those of a container, and not those that are as if they were not there."""
    defaults = {f"{PREFIX}{name.upper()}": field.default for name, field in Settings.model_fields.items()}
    return {
        name: value
        for name, value in environment.items()
        if name not in defaults or TypeAdapter(type(defaults[name])).validate_python(value or "") != defaults[name]
    }


@pytest.mark.parametrize("service", ["gateway", "inference"])
def test_one_address_of_a_kafka_is_enough_for_both_uses(service: str) -> None:
    mine = ComposeFile({"LLMOS_BUS_URL": "kafkas://mine:9092"}).environment(service)
    assert (mine["LLMOS_BUS_URL"], mine["LLMOS_REQUESTS_URL"]) == ("kafkas://mine:9092",) * 2
    over_valkey = ComposeFile({"LLMOS_REQUESTS_URL": "redis://valkey:6379/0"}).environment(service)
    assert over_valkey["LLMOS_BUS_URL"] == "kafka://kafka:9092"
    assert over_valkey["LLMOS_REQUESTS_URL"] == "redis://valkey:6379/0"


@pytest.mark.parametrize("service", ["migrate", "gateway", "registry", "trainer", "inference"])
def test_another_s3_is_an_address_and_credentials_of_its_own(service: str) -> None:
    other = {"STORE_URL": "s3://s3.example.com/llmos", "S3_ACCESS_KEY": "id", "S3_SECRET_KEY": "key", "S3_SECURE": "1"}
    other = {f"{PREFIX}{name}": value for name, value in other.items()}
    assert other.items() <= ComposeFile(other).environment(service).items()
    own = ComposeFile({"MINIO_ROOT_USER": "minio-id", "MINIO_ROOT_PASSWORD": "minio-key"}).environment(service)
    assert own[f"{PREFIX}STORE_URL"] == "s3://minio:9000/llmos"
    assert (own[f"{PREFIX}S3_ACCESS_KEY"], own[f"{PREFIX}S3_SECRET_KEY"]) == ("minio-id", "minio-key")


def test_every_service_gets_every_setting_that_the_example_offers() -> None:
    offered = set(re.findall(rf"^#?({PREFIX}\w+)=", EXAMPLE_ENV, re.MULTILINE))
    offered -= {
        f"{PREFIX}{name}"
        # for those who need it
        for name in ("API_KEY", "NODE", "STORE_URL", "S3_ACCESS_KEY", "S3_SECRET_KEY", "S3_PUBLIC_URL", "S3_SECURE")
    }
    offered = {name for name in offered if not name.startswith(f"{PREFIX}BACKUP_")}
    services = compose()["services"]
    for name in ("gateway", "scheduler", "registry", "trainer", "inference", "trainer-gpu", "inference-gpu"):
        assert offered <= set(services[name]["environment"]), name
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    for name, service in services.items():
        ours = {key for key in service.get("environment", {}) if key.startswith(PREFIX)}
        assert ours <= known, name


def test_each_image_is_built_by_one_service_so_that_an_up_without_a_build_leaves_the_containers_as_they_are() -> None:
    ours = [service for service in compose()["services"].values() if "llmos/" in service["image"]]
    built = sorted(service["image"] for service in ours if "build" in service)
    assert built == sorted({service["image"] for service in ours})
    assert len(built) == 3


def test_every_secret_of_the_example_is_refused_in_earnest_by_each_container_that_is_given_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    secrets = dict(re.findall(r"^#?(\w*(?:PASSWORD|API_KEY|SECRET_KEY)\w*)=(.+)$", EXAMPLE_ENV, re.MULTILINE))
    assert len(secrets) >= 7
    own = {name: f"own-{name}" for name in secrets} | {"LLMOS_DEV": "0"}
    assert not list(refusals(ComposeFile(own), "own-", monkeypatch))
    for name, example in secrets.items():
        given = {
            service
            for service in compose()["services"]
            if f"own-{name}" in " ".join(ComposeFile(own).environment(service).values())
        }
        assert given, f"{name} reaches nobody"
        assert set(refusals(ComposeFile({**own, name: example}), example, monkeypatch)) == given, name


def test_the_example_as_it_is_is_good_enough_for_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not list(refusals(ComposeFile({}), EXAMPLE, monkeypatch))


def test_grafana_without_a_password_has_none_that_everybody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    forgotten = ComposeFile({"GRAFANA_PASSWORD": "", "LLMOS_DEV": "0"})
    assert "grafana" in refusals(forgotten, EXAMPLE, monkeypatch)


def refusals(file: ComposeFile, secret: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The services that do not start for it. None repeats it."""
    for name, service in file.services.items():
        start = start_of_ours if "llmos/" in service["image"] else start_of_another
        if said := start(service, file.environment(name), monkeypatch):
            assert "a secret of .env.example" in said
            assert secret not in said
            yield name


def start_of_ours(_: object, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What the settings say against it; nothing where it starts."""
    with monkeypatch.context() as inside:
        for variable, value in environment.items():
            inside.setenv(variable, value)
        try:
            load_settings()
        except SettingsError as error:
            return str(error)
    return ""


def start_of_another(service: dict[str, Any], environment: dict[str, str], _: object) -> str:
    """What its entrypoint says against it, with `echo started` for what it would start."""
    if "entrypoint" not in service:
        return ""
    shell, script, _start = service["entrypoint"]
    mounted = next(volume for volume in service["volumes"] if volume.endswith(f":{script}:ro"))
    command = [shell, str(ROOT / mounted.split(":")[0]), "echo", "started"]
    done = subprocess.run(command, env={"PATH": os.environ["PATH"], **environment}, capture_output=True, text=True)
    assert (done.stdout == "started\n") is (done.returncode == 0)
    return done.stderr


@pytest.mark.parametrize("service", ["trainer", "inference", "trainer-gpu", "inference-gpu"])
def test_a_worker_that_is_told_to_stop_is_killed_only_after_the_time_that_it_may_take(service: str) -> None:
    said = ComposeFile({}).filled(compose()["services"][service]["stop_grace_period"])
    given_s = int(said.removesuffix("s"))
    last_words_s = FAREWELL_TIMEOUT_S + DELIVERY_TIMEOUT_S + LATE_S
    assert given_s > Settings().stop_grace_s + REPORT_TIME_S + STOP_TIMEOUT_S + last_words_s
    assert given_s > Settings().drain_timeout_s + KEEPERS_WORDS_S + AGENTS_WORDS_S + last_words_s
    operations = (ROOT / "docs/operations.md").read_text()
    assert f"`terminationGracePeriodSeconds: {given_s}`" in operations
    assert f"--stop-timeout {given_s} " in operations


def test_only_the_gateway_is_reachable_from_outside_and_the_rest_on_loopback_at_most() -> None:
    for name, service in compose()["services"].items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:") or name == "gateway", (name, port)


def test_every_service_has_a_health_check_a_limit_and_a_restart_policy() -> None:
    for name, service in compose()["services"].items():
        assert service["restart"], name
        assert service["deploy"]["resources"]["limits"]["memory"], name
        if name != "migrate":
            assert service["healthcheck"]["test"], name


def test_the_balancer_of_the_documentation_asks_the_gateways_that_compose_starts() -> None:
    said = (ROOT / "docs/operations.md").read_text()
    settings = re.search(r"`GATEWAYS=(\d)` and `GATEWAY_PORTS=(\d+)-(\d+)`", said)
    config = re.search(r"```haproxy\n(.*?)```", said, re.DOTALL)
    assert settings
    assert config
    count, first, last = map(int, settings.groups())
    assert last - first + 1 == count
    (published,) = compose()["services"]["gateway"]["ports"]
    asked = re.findall(r"^ +server \w+ (\S+) check$", config[1], re.MULTILINE)
    assert asked == [
        ComposeFile({"GATEWAY_PORTS": str(port)}).filled(published).removesuffix(":8000")
        for port in range(first, last + 1)
    ]
    path = re.search(r"option httpchk GET (\S+)", config[1])
    assert path
    assert path[1] in OPEN, "a balancer has no key"


@pytest.mark.parametrize("file", ["prometheus/alerts.yml", "grafana/dashboards/llmos.json"])
def test_dashboard_and_alerts_ask_for_metrics_that_there_are(file: str) -> None:
    asked = (ROOT / "deploy/observe" / file).read_text()
    json.loads(asked) if file.endswith(".json") else yaml.safe_load(asked)
    code = "\n".join(path.read_text() for path in (ROOT / "services").rglob("metrics.py"))
    there = {SUFFIX.sub("", name) for name in METRIC.findall(code)}
    wanted = {SUFFIX.sub("", name) for name in METRIC.findall(asked)} - {"llmos"}
    assert wanted
    assert wanted <= there, wanted - there
