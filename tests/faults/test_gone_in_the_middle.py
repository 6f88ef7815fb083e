"""A server of a cluster goes in the middle of everything: what can be accepted is, the rest is told to come again, what
runs goes on and reports later, and all of it heals by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx
import psutil
import pytest

from llmos.client import LLMOS
from tests.e2e.cluster import Cluster
from tests.faults.posting import Posting
from tests.tiny_model import make_tiny_llama
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(300)

LASTING = {"steps": 60, "step_s": 0.1, "checkpoint_every": 10}
CHAT = {"model": "echoes", "messages": [{"role": "user", "content": "a b c"}]}


@pytest.fixture(scope="module")
def client(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLMOS]:
    """Of a cluster that is up and serves a model as `echoes`."""
    cluster.up()
    folder = make_tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny")
    with cluster.client() as client:
        job = client.submit_job("import", params={"source": str(folder)}, output="tiny")
        assert client.wait_job(job["id"])["status"] == "succeeded"
        client.deploy("tiny", name="echoes", engine="echo")
        yield client
        client.undeploy("echoes")


@pytest.fixture
def http(client: LLMOS) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=client.connection.url, headers=client.connection.headers, timeout=30) as http:
        yield http


class Day:
    """A day on which a job runs and a client submits more, while one server goes and comes."""

    def __init__(self, cluster: Cluster, client: LLMOS, http: httpx.Client, server: str) -> None:
        self.http = http
        self.client = client
        self.server = server
        self._cluster = cluster
        eventually(lambda: self.chat().status_code == 200, 60, "the model answers")
        self.running = client.submit_job("probe", params=LASTING, output=f"through-{server}")["id"]
        eventually(lambda: (self.job().get("progress") or {}).get("step", 0) >= 12, 60, "it runs")
        self._pids = {name: cluster.pid_of(name) for name in cluster.processes}
        self.posting = Posting(http, pause_s=0.5)

    def job(self) -> dict[str, Any]:
        return self.client.get_job(self.running)

    def chat(self) -> httpx.Response:
        return self.http.post("/v1/chat/completions", json=CHAT)

    def upload(self) -> httpx.Response:
        return self.http.post("/v1/files", files={"file": ("a.jsonl", b'{"a": 1}\n')}, data={"purpose": "fine-tune"})

    @contextmanager
    def without(self) -> Iterator[None]:
        """The server is gone; whoever needs it says so."""
        self._cluster.servers.kill(self.server)
        try:
            yield
        finally:
            self._cluster.servers.start()

    def more(self, answers: list[Any]) -> None:
        """Wait for some more of these answers."""
        before = len(answers)
        eventually(lambda: len(answers) > before + 3, 60, f"more answers while {self.server} is away")

    def trained(self) -> None:
        """Wait until the job that ran has done its last step, when nobody can say so and no other is begun."""
        trainer = psutil.Process(self._cluster.pid_of("trainer"))
        eventually(lambda: not any(_trains(child) for child in trainer.children()), 60, "the training's end")

    def missing(self, name: str) -> Mapping[str, str]:
        return eventually(lambda: self._cluster.missing(name), 30, f"{name} says what it waits for") or {}

    def heals(self) -> None:
        """All that was accepted is done, once; nobody had to be started again."""
        self.posting.stop()
        self.posting.check_refusals()
        self._cluster.wait_until_ready()
        for job_id in [self.running, *self.posting.accepted]:
            done = eventually(lambda job_id=job_id: self._ended(job_id), 120, "every accepted job ends")  # type: ignore[misc]
            assert done["status"] == "succeeded", done
        assert len(self.job()["attempts"]) == 1
        versions = self.client.artifact_versions(f"through-{self.server}")["data"]
        assert [version["version"] for version in versions] == [1]
        eventually(lambda: self.chat().status_code == 200, 60, "the model answers again")
        assert {name: self._cluster.pid_of(name) for name in self._pids} == self._pids
        assert all(process.poll() is None for process in self._cluster.processes.values())

    def _ended(self, job_id: str) -> dict[str, Any] | None:
        job: dict[str, Any] = self.client.get_job(job_id)
        return job if job["status"] in ("succeeded", "failed", "cancelled") else None


def comes_again(answer: httpx.Response) -> bool:
    """503, when to try again, and a sentence."""
    if answer.status_code != 503:
        return False
    assert int(answer.headers["Retry-After"]) >= 1, answer.headers
    assert " " in answer.json()["error"]["message"]
    return True


def test_kafka_goes_and_comes(cluster: Cluster, client: LLMOS, http: httpx.Client) -> None:
    day = Day(cluster, client, http, "bus")
    with day.without():
        day.more(day.posting.accepted)
        assert "bus" in day.missing("trainer")
        assert comes_again(day.chat())
        assert day.job()["status"] == "running"
        day.trained()
        day.more(day.posting.refused)
        assert len(client.list_jobs()["data"]) > 1
    day.heals()


def test_postgresql_goes_and_comes(cluster: Cluster, client: LLMOS, http: httpx.Client) -> None:
    day = Day(cluster, client, http, "database")
    with day.without():
        day.more(day.posting.refused)
        assert "database" in day.missing("scheduler")
        assert comes_again(http.get(f"/v1/jobs/{day.running}"))
        day.trained()
    day.heals()


def test_minio_goes_and_comes(cluster: Cluster, client: LLMOS, http: httpx.Client) -> None:
    day = Day(cluster, client, http, "store")
    with day.without():
        assert comes_again(day.upload())
        assert "store" in day.missing("registry")
        assert day.chat().status_code == 200
        day.more(day.posting.accepted)
        assert day.job()["status"] == "running"
    assert eventually(lambda: day.upload().status_code == 200, 30)
    day.heals()


def test_valkey_goes_and_comes(cluster: Cluster, client: LLMOS, http: httpx.Client) -> None:
    day = Day(cluster, client, http, "replies")
    with day.without():
        eventually(lambda: comes_again(day.chat()), 30)
        assert "inference" in day.missing("gateway")
        accepted = http.post("/v1/jobs", json={"type": "probe"}).json()["id"]
        assert client.wait_job(accepted)["status"] == "succeeded"
        assert client.wait_job(day.running)["status"] == "succeeded"
    day.heals()


def _trains(process: psutil.Process) -> bool:
    try:
        return "services.trainer.child" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False
