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

from shared.settings import EXAMPLE, PREFIX, Settings, SettingsError, load_settings
from tests.e2e.compose_file import ComposeFile

ROOT = Path(__file__).parents[3]
EXAMPLE_ENV = (ROOT / ".env.example").read_text()
OF_THE_HOST = {"HOME", "HOST", "PORT", "URL", "LOG_FORMAT", "METRICS_PORT", "S3_SECURE", "BACKUP_S3_SECURE"}
"""Settings that the images or the compose file fix, or that only the command reads."""
MADE_FROM_OTHERS = {"BUS_URL", "REDIS_URL", "STORE_URL", "DB_URL", "S3_ACCESS_KEY", "S3_SECRET_KEY"}
MADE_FROM_OTHERS |= {"GATEWAY_DB_URL", "SCHEDULER_DB_URL", "REGISTRY_DB_URL"}
MADE_FROM_OTHERS |= {"BACKUP_S3_ACCESS_KEY", "BACKUP_S3_SECRET_KEY"}
METRIC = re.compile(r"\bllmos_[a-z_]+\b")
SUFFIX = re.compile(r"_(total|bucket|sum|count)$")


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return found


def test_the_example_explains_every_setting_with_its_default() -> None:
    for name, field in Settings.model_fields.items():
        if name.upper() not in OF_THE_HOST | MADE_FROM_OTHERS:
            line = re.search(rf"^#?{PREFIX}{name.upper()}=(.*)$", EXAMPLE_ENV, re.MULTILINE)
            assert line, f"{PREFIX}{name.upper()} is not in .env.example"
            if name not in {"dev", "api_key", "requests_url", "node"}:
                default = str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
                assert line[1] == default, name


def test_every_service_gets_every_setting_that_the_example_offers() -> None:
    offered = set(re.findall(rf"^#?({PREFIX}\w+)=", EXAMPLE_ENV, re.MULTILINE))
    offered -= {
        f"{PREFIX}{name}"
        for name in ("API_KEY", "NODE", "S3_PUBLIC_URL", "S3_SECURE")  # for those who need it
    }
    offered = {name for name in offered if not name.startswith(f"{PREFIX}BACKUP_")}
    services = compose()["services"]
    for name in ("gateway", "scheduler", "registry", "trainer", "inference", "trainer-gpu", "inference-gpu"):
        assert offered <= set(services[name]["environment"]), name
    known = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
    for name, service in services.items():
        ours = {key for key in service.get("environment", {}) if key.startswith(PREFIX)}
        assert ours <= known, name


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
        start = start_of_ours if "build" in service else start_of_another
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


def test_only_the_gateway_is_reachable_from_outside_and_the_rest_on_loopback_at_most() -> None:
    for name, service in compose()["services"].items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:") or name == "gateway", (name, port)


def test_every_service_has_a_health_check_a_limit_and_a_restart_policy() -> None:
    for name, service in compose()["services"].items():
        assert service["restart"], name
        assert service["deploy"]["resources"]["limits"]["memory"], name
        if name not in {"migrate", "kafka-ui"}:
            assert service["healthcheck"]["test"], name


@pytest.mark.parametrize("file", ["prometheus/alerts.yml", "grafana/dashboards/llmos.json"])
def test_dashboard_and_alerts_ask_for_metrics_that_there_are(file: str) -> None:
    asked = (ROOT / "deploy/observe" / file).read_text()
    json.loads(asked) if file.endswith(".json") else yaml.safe_load(asked)
    code = "\n".join(path.read_text() for path in (ROOT / "services").rglob("metrics.py"))
    there = {SUFFIX.sub("", name) for name in METRIC.findall(code)}
    wanted = {SUFFIX.sub("", name) for name in METRIC.findall(asked)} - {"llmos"}
    assert wanted
    assert wanted <= there, wanted - there
