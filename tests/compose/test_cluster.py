"""The cluster shape as a user starts it: `docker compose up`, the demo against it, and then one of each is killed.

`make test-compose` runs this: it needs a Docker engine, some gigabytes and a quarter of an hour.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmos.client import LLMOS
from llmos.demo.stage import ref_of
from tests.e2e.test_whole_life import FOX, TINY
from tests.ports import free_port, free_ports_in_a_row
from tests.waiting import eventually

ROOT = Path(__file__).parents[2]
PROJECT = "llmos-test"
TWICE = ("GATEWAYS", "SCHEDULERS", "TRAINERS", "INFERENCE_NODES")
SERVICES = ("gateway", "scheduler", "registry", "trainer", "inference")
KEY = "sk-llmos-change-me"
UP_S = 1800
pytestmark = [pytest.mark.compose, pytest.mark.timeout(3600)]


class Cluster:
    """Two gateways, schedulers, trainers and inference nodes, and one of the rest, on ports of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        first = free_ports_in_a_row(2)
        self._env = {
            **os.environ,
            "COMPOSE_PROJECT_NAME": PROJECT,
            "GATEWAY_PORTS": f"{first}-{first + 1}",
            "MINIO_CONSOLE_PORT": str(free_port()),
            "LLMOS_HEARTBEAT_TIMEOUT_S": "15",
            **dict.fromkeys(TWICE, "2"),
        }
        (folder / ".env").write_text((ROOT / ".env.example").read_text())

    def compose(self, *words: str, timeout_s: float = 120) -> str:
        """What `docker compose` said. Raises AssertionError with it where it failed."""
        files = ["--env-file", str(self.folder / ".env"), "--file", str(ROOT / "docker-compose.yml")]
        done = subprocess.run(
            ["docker", "compose", *files, *words],
            env=self._env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
        )
        assert done.returncode == 0, done.stdout[-3000:]
        return done.stdout

    def up(self) -> None:
        self.compose("up", "--detach", "--build", "--wait", "--wait-timeout", "600", timeout_s=UP_S)

    def gateway(self, index: int = 1) -> str:
        """The address of one of the gateways."""
        return "http://" + self.compose("port", "--index", str(index), "gateway", "8000").strip()

    def down(self) -> None:
        self.compose("down", "--volumes", "--timeout", "20")

    def llmos(self, *words: str, timeout_s: float = 600) -> str:
        """The command, as a user of the folder with `.env` types it."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LLMOS_")}
        done = subprocess.run(
            [sys.executable, "-m", "llmos", *words],
            cwd=self.folder,
            env={**environment, "LLMOS_URL": self.gateway()},
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        return done.stdout

    def kill(self, service: str, index: int = 1) -> None:
        """As a machine that vanishes: SIGKILL, and nobody starts it again."""
        subprocess.run(["docker", "kill", f"{PROJECT}-{service}-{index}"], check=True, capture_output=True)

    def node_of(self, index: int, service: str) -> str:
        """The name by which the nodes know a container: its host name."""
        found = subprocess.run(
            ["docker", "inspect", "--format", "{{.Config.Hostname}}", f"{PROJECT}-{service}-{index}"],
            check=True,
            capture_output=True,
            text=True,
        )
        return found.stdout.strip()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        cluster.up()
        yield cluster
    finally:
        print(cluster.compose("logs", "--no-color", "--tail", "30", *SERVICES)[-20_000:])
        cluster.down()


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> Iterator[LLMOS]:
    with LLMOS(cluster.gateway(), KEY) as client:
        yield client


@pytest.fixture(scope="module")
def model(client: LLMOS) -> str:
    """A tiny model pretrained by the cluster, by its ref."""
    with client.openai() as api:
        data = api.files.create(file=("fox.txt", (FOX * 2000).encode()), purpose="fine-tune")
    job = client.submit_job("pretrain", inputs={"training_data": data.id}, params=TINY, output="fox")
    done = client.wait_job(job["id"])
    assert done["status"] == "succeeded", done
    return ref_of(done)


def test_the_demo_passes_against_it(cluster: Cluster) -> None:
    facts = {row["name"]: row["value"] for row in json.loads(cluster.llmos("demo", "--json", timeout_s=2400))["data"]}
    base, adapter = (int(facts[f"exam, {name}"].split()[0]) for name in ("base", "adapter"))
    assert adapter > base


def test_the_images_are_small_run_as_nobody_and_hold_no_build_tools(cluster: Cluster) -> None:
    base, control = (_inspected(image, "{{.Size}}") for image in ("python:3.11-slim-bookworm", "llmos/control"))
    assert int(control) - int(base) <= 300e6
    for image in ("llmos/control", "llmos/worker"):
        assert _inspected(image, "{{.Config.User}}") == "llmos"
        tools = "for tool in gcc cc make git; do command -v $tool; done; python -m pip --version; true"
        found = subprocess.run(
            ["docker", "run", "--rm", "--entrypoint", "sh", image, "-c", tools],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert found.stdout == ""


def test_a_job_whose_trainer_vanishes_goes_on_at_the_other(cluster: Cluster, client: LLMOS) -> None:
    job = client.submit_job("probe", params={"steps": 60, "step_s": 0.5, "checkpoint_every": 5}, output="survivor")
    running = eventually(lambda: _with_checkpoint(client.get_job(job["id"])), 60)
    node = running["attempts"][-1]["nodes"][0]
    cluster.kill("trainer", next(index for index in (1, 2) if cluster.node_of(index, "trainer") == node))
    done = eventually(lambda: ended if (ended := client.get_job(job["id"]))["status"] == "succeeded" else None, 180)
    assert len(done["attempts"]) == 2
    assert len(client.artifact_versions("survivor")["data"]) == 1


def test_any_gateway_answers_for_what_another_took(cluster: Cluster, client: LLMOS) -> None:
    job = client.submit_job("probe", output="seen-by-both")
    with LLMOS(cluster.gateway(2), KEY) as other:
        assert other.get_job(job["id"])["output"] == "seen-by-both"
        eventually(lambda: other.get_job(job["id"])["status"] == "succeeded", 120)
        assert client.get_job(job["id"])["status"] == "succeeded"


def test_a_model_is_answered_for_after_one_of_its_nodes_vanished(cluster: Cluster, client: LLMOS, model: str) -> None:
    client.deploy(model, name="trio", replicas=3, engine_args={"max_model_len": 128})
    deployed = eventually(lambda: ready if (ready := client.get_deployment("trio"))["status"] == "ready" else None, 600)
    assert len({replica["node"] for replica in deployed["replica_statuses"]}) == 2
    _ask(client)
    cluster.kill("inference")
    for _ in range(5):
        _ask(client)


def test_a_standby_takes_over_when_the_leader_vanishes(cluster: Cluster, client: LLMOS) -> None:
    cluster.kill("scheduler")
    job = client.submit_job("probe", output="after-the-leader")
    eventually(lambda: client.get_job(job["id"])["status"] == "succeeded", 120)


def test_the_other_gateway_answers_when_one_vanishes(cluster: Cluster) -> None:
    second = cluster.gateway(2)
    cluster.kill("gateway", 1)
    with LLMOS(second, KEY) as client:
        job = client.submit_job("probe", output="past-the-other-gateway")
        eventually(lambda: client.get_job(job["id"])["status"] == "succeeded", 120)


def _with_checkpoint(job: dict[str, Any]) -> dict[str, Any] | None:
    return job if job["status"] == "running" and job.get("checkpoints") else None


def _inspected(image: str, what: str) -> str:
    found = subprocess.run(
        ["docker", "image", "inspect", "--format", what, image], check=True, stdout=subprocess.PIPE, text=True
    )
    return found.stdout.strip()


def _ask(client: LLMOS) -> None:
    with client.openai() as api:
        answer = api.completions.create(model="trio", prompt="The quick brown", max_tokens=4)
    assert answer.choices[0].text
