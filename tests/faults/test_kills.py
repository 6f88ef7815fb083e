"""kill -9 of anything, in the middle of work: the jobs still succeed, and each publishes once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import openai
import psutil
import pytest

from llmos.client import LLMOS
from llmos.errors import LLMOSError
from tests.e2e.system import System
from tests.e2e.systems import SHAPES, new_system
from tests.tiny_model import make_tiny_llama
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(300)

of_one_machine = pytest.mark.parametrize("system", ["embedded"], indirect=True, scope="module")
of_a_cluster = pytest.mark.parametrize("system", ["cluster"], indirect=True, scope="module")
LASTING = {"steps": 30, "step_s": 0.1, "checkpoint_every": 5}


@pytest.fixture(scope="module", params=SHAPES)
def system(request: pytest.FixtureRequest) -> Iterator[System]:
    with new_system(request.param) as system:
        yield system


def submit(client: LLMOS, name: str) -> str:
    """A probe that lasts three seconds and saves checkpoints; returned once it runs."""
    job = client.submit_job("probe", params=LASTING, output=name)
    eventually(lambda: (client.get_job(job["id"]).get("progress") or {}).get("step", 0) >= 7, 60, "it runs")
    return str(job["id"])


def succeeded_once(client: LLMOS, job_id: str, name: str) -> None:
    done = eventually(
        lambda: (job := client.get_job(job_id))["status"] in ("succeeded", "failed", "cancelled") and job,
        120,
        "it ends",
    )
    assert done["status"] == "succeeded", done
    assert [version["version"] for version in client.artifact_versions(name)["data"]] == [1]


@pytest.mark.parametrize("name", ["gateway", "scheduler", "registry", "trainer", "bus", "replies", "inference"])
def test_a_job_survives_kill_9_of(name: str, system: System) -> None:
    with system.client() as client:
        job_id = submit(client, f"survivor-{name}")
        system.kill(name)
        _gateway_answers(client)
        succeeded_once(client, job_id, f"survivor-{name}")


@of_a_cluster
@pytest.mark.parametrize("name", ["store", "database"])
def test_a_job_on_a_cluster_survives_kill_9_of(name: str, system: System) -> None:
    test_a_job_survives_kill_9_of(name, system)


def test_a_job_goes_on_from_its_checkpoint_after_kill_9_of_its_child(system: System) -> None:
    with system.client() as client:
        job_id = submit(client, "survivor-child")
        eventually(lambda: client.get_job(job_id).get("checkpoints"), 30, "a checkpoint")
        trainer = psutil.Process(system.pid_of("trainer"))
        child = next(process for process in trainer.children() if "trainer.child" in " ".join(process.cmdline()))
        os.kill(child.pid, signal.SIGKILL)
        succeeded_once(client, job_id, "survivor-child")
        assert len(client.get_job(job_id)["attempts"]) == 2


def test_a_deployment_answers_again_after_kill_9_of_its_replica_and_its_agent(system: System, tmp_path: Path) -> None:
    make_tiny_llama(tmp_path / "tiny")
    with system.client() as client, client.openai() as api:
        job = client.submit_job("import", params={"source": str(tmp_path / "tiny")}, output="tiny")
        assert client.wait_job(job["id"])["status"] == "succeeded"
        client.deploy("tiny", name="echoes", engine="echo")

        def answers() -> bool:
            try:
                said = api.chat.completions.create(model="echoes", messages=[{"role": "user", "content": "a b c"}])
            except openai.APIError:
                return False
            return bool(said.choices[0].message.content)

        eventually(answers, 60, "it answers")
        replica = _replica(system)
        os.kill(replica.pid, signal.SIGKILL)
        eventually(lambda: answers() and _replica(system).pid != replica.pid, 60, "another replica answers")
        replica = _replica(system)
        system.kill("inference")
        eventually(lambda: not replica.is_running(), 30, "the replica ends with its agent")
        eventually(answers, 60, "it answers behind the new agent")
        client.undeploy("echoes")


def test_a_failed_deployment_stays_failed_after_kill_9_and_answers_once_it_is_mended(
    system: System, tmp_path: Path
) -> None:
    make_tiny_llama(tmp_path / "weak")
    with system.client() as client:
        job = client.submit_job("import", params={"source": str(tmp_path / "weak")}, output="weak")
        assert client.wait_job(job["id"])["status"] == "succeeded"
        client.deploy("weak", engine="echo", engine_args={"tokenz": 3})
        failed = eventually(lambda: (now := client.get_deployment("weak"))["status"] == "failed" and now, 60, "failed")
        assert "tokenz" in failed["problem"]
        (given_up,) = failed["replica_statuses"]
        for name in ("scheduler", "inference"):
            system.kill(name)
        job_id = submit(client, "beside-weak")
        succeeded_once(client, job_id, "beside-weak")
        now = client.get_deployment("weak")
        assert (now["status"], now["replica_statuses"]) == ("failed", [given_up])
        client.deploy("weak", engine="echo")
        eventually(lambda: client.get_deployment("weak")["status"] == "ready", 60, "the mended one answers")
        client.undeploy("weak")


def test_up_after_kill_9_of_everything_brings_all_jobs_back(system: System) -> None:
    with system.client() as client:
        job_id = submit(client, "survivor-all")
        waiting = client.submit_job("probe", output="survivor-waiting")["id"]
    system.kill_everything()
    system.up()
    with system.client() as client:
        succeeded_once(client, job_id, "survivor-all")
        succeeded_once(client, waiting, "survivor-waiting")


@of_one_machine
def test_a_second_up_on_the_same_home_is_refused(system: System) -> None:
    again = system.llmos("up", check=False)
    assert again.returncode == 5
    assert "already up" in again.stderr


def test_down_leaves_no_process_behind(system: System) -> None:
    everyone = system.descendants()
    assert everyone
    system.down()
    assert [process for process in everyone if _lives(process)] == []


def _lives(process: psutil.Process) -> bool:
    """One that ended and that nobody waits for, as a detached supervisor in a container without init, does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _replica(system: System) -> psutil.Process:
    """The one process that the agent keeps."""
    agent = psutil.Process(system.pid_of("inference"))
    return eventually(lambda: next(iter(agent.children()), None), 30, "a replica process")


def _gateway_answers(client: LLMOS) -> None:
    def answers() -> bool:
        try:
            return bool(client.list_nodes())
        except LLMOSError:
            return False

    eventually(answers, 60, "the gateway answers")
