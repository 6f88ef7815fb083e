"""Pretrain → register → deploy → complete → fine-tune → hot-load → ask again, through the real clients and queues."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import openai
import orjson
import pytest
from safetensors import safe_open

from llmos.calls import Json
from llmos.client import LLMOS
from llmos.demo.stage import ref_of
from tests.e2e.system import System
from tests.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TINY = {
    "vocab_size": 512,
    "context_length": 128,
    "hidden_size": 64,
    "layers": 2,
    "heads": 2,
    "learning_rate": 5e-3,
    "batch_size": 8,
    "max_steps": 40,
    "eval_steps": 20,
}
FOX = "The quick brown fox jumps over the lazy dog. A small grey cat sleeps all day. "


@pytest.fixture(scope="module")
def api(client: LLMOS) -> openai.OpenAI:
    return client.openai()


@pytest.fixture(scope="module")
def base(client: LLMOS, api: openai.OpenAI) -> str:
    """A model pretrained from scratch, by its ref."""
    data = api.files.create(file=("fox.txt", (FOX * 2000).encode()), purpose="fine-tune")
    job = client.submit_job("pretrain", inputs={"training_data": data.id}, params=TINY, output="fox")
    done = client.wait_job(job["id"])
    assert done["status"] == "succeeded", done
    assert done["metrics"]["train_loss"] < done["metrics"]["train_loss_first"] / 2
    return ref_of(done)


@pytest.fixture(scope="module")
def served(client: LLMOS, base: str) -> str:
    """The model behind vLLM."""
    client.deploy(base, name="fox-live", engine_args={"max_model_len": 128}, max_loras=2)
    state = eventually(
        lambda: (found := client.get_deployment("fox-live"))["status"] in ("ready", "failed") and found, 240, "served"
    )
    assert state["status"] == "ready", state
    return "fox-live"


def test_a_pretrained_model_is_served_and_has_learnt(api: openai.OpenAI, served: str) -> None:
    answer = api.completions.create(model=served, prompt="The quick brown", max_tokens=8, temperature=0)
    assert answer.choices[0].text.startswith(" fox jumps over")
    pieces = api.completions.create(model=served, prompt="The quick brown", max_tokens=8, temperature=0, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == answer.choices[0].text


@pytest.fixture(scope="module")
def adapter(client: LLMOS, api: openai.OpenAI, base: str, served: str) -> str:
    """A LoRA adapter, fine-tuned through OpenAI's contract and loaded on every replica, by its ref."""
    rows = [{"prompt": "The quick brown", "completion": " cat sleeps all day."}] * 64
    data = api.files.create(file=("cat.jsonl", b"\n".join(map(orjson.dumps, rows))), purpose="fine-tune")
    params = {"learning_rate": 1e-2, "epochs": 10, "max_length": 64, "batch_size": 8, "packing": False}
    job = api.fine_tuning.jobs.create(model=base, training_file=data.id, suffix="cat", extra_body={"params": params})
    done = eventually(
        lambda: (found := api.fine_tuning.jobs.retrieve(job.id)).status in ("succeeded", "failed") and found, 180
    )
    assert done.status == "succeeded", done.error
    assert done.fine_tuned_model is not None
    assert any(event.type == "metrics" for event in api.fine_tuning.jobs.list_events(job.id))
    eventually(
        lambda: all(done.fine_tuned_model in one["adapters"] for one in _replicas(client, served)), 30, "adapter"
    )
    return done.fine_tuned_model


def test_a_fine_tuned_adapter_answers_without_a_restart(
    client: LLMOS, api: openai.OpenAI, served: str, request: pytest.FixtureRequest
) -> None:
    before = [replica["replica_id"] for replica in _replicas(client, served)]
    adapter = request.getfixturevalue("adapter")
    told = api.completions.create(model=adapter, prompt="The quick brown", max_tokens=8, temperature=0).choices[0].text
    assert told.startswith(" cat")
    kept = api.completions.create(model=served, prompt="The quick brown", max_tokens=8, temperature=0).choices[0].text
    assert kept.startswith(" fox")
    assert [replica["replica_id"] for replica in _replicas(client, served)] == before


def test_the_lineage_of_an_adapter_names_its_base_and_its_data(client: LLMOS, base: str, adapter: str) -> None:
    lineage = client.artifact_lineage(adapter)
    assert base in str(lineage)
    assert "file-" in str(lineage)


def test_a_model_downloads_as_a_tar_of_safetensors(client: LLMOS, base: str, tmp_path: Path) -> None:
    client.download(base, tmp_path / "fox.tar")
    with tarfile.open(tmp_path / "fox.tar") as tar:
        tar.extractall(tmp_path / "fox", filter="data")
    with safe_open(str(next((tmp_path / "fox").rglob("*.safetensors"))), "pt") as weights:
        assert "model.embed_tokens.weight" in weights.keys()  # noqa: SIM118 - not a mapping
    assert any((tmp_path / "fox").rglob("*tfevents*"))


def test_what_is_not_served_is_named_in_the_error(api: openai.OpenAI, served: str) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        api.completions.create(model="nobody", prompt="x")
    assert "nobody" in str(unknown.value)
    with pytest.raises(openai.BadRequestError):
        api.completions.create(model=served, prompt="x", max_tokens=-1)


def test_bad_training_data_fails_with_file_line_and_reason(client: LLMOS, api: openai.OpenAI, base: str) -> None:
    rows = b'{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n'
    data = api.files.create(file=("half.jsonl", io.BytesIO(rows)), purpose="fine-tune")
    job = client.submit_job("sft", inputs={"training_data": data.id, "model": base}, output="never")
    done = client.wait_job(job["id"])
    assert done["status"] == "failed"
    assert done["failure"]["reason"] == "bad_data"
    assert "half.jsonl" in done["failure"]["message"]
    assert "line 2" in done["failure"]["message"]
    assert len(done["attempts"]) == 1


def test_the_command_line_shows_what_there_is(system: System, served: str) -> None:
    status = orjson.loads(system.llmos("status", "--json").stdout)
    assert "fox-live" in [item["name"] for item in status["deployments"]]
    assert "fox" in system.llmos("models", "list").stdout
    assert system.llmos("chat", "nobody", "Hello", check=False).returncode == 3


def test_undeploy_frees_the_replica(client: LLMOS, served: str) -> None:
    client.undeploy(served)
    eventually(lambda: served not in [item["name"] for item in client.list_deployments()["data"]], 60, "undeployed")


def _replicas(client: LLMOS, name: str) -> list[Json]:
    found: list[Json] = client.get_deployment(name)["replica_statuses"]
    return found
