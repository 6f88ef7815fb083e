"""OpenAI's contract, checked with OpenAI's own client against a running gateway."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from shared.bus.port import Position
from shared.contracts.artifacts import ArtifactKind
from shared.contracts.jobs import CheckpointRef, Failure, FailureReason, JobStatus, Progress
from shared.contracts.message import Message
from shared.contracts.topics import JOBS_LOGS
from tests.ground import Ground
from tests.integration.gateway_world import GatewayWorld, Running
from tests.waiting import eventually

CHAT = b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}\n'


@pytest.fixture(scope="module")
def world(lasting_ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayWorld]:
    world = GatewayWorld(tmp_path_factory.mktemp("gateway"), lasting_ground)
    yield world
    world.close()


@pytest.fixture(scope="module")
def here(world: GatewayWorld) -> Iterator[Running]:
    with world.gateway() as running:
        yield running


def log(world: GatewayWorld, message: Message, job_id: str) -> Position:
    return world.bus.publish(JOBS_LOGS, job_id, message).result()


def base_model(world: GatewayWorld, here: Running) -> str:
    pin = world.registry.put("base", ArtifactKind.model, {"model.safetensors": b"weights"})
    eventually(lambda: here.http.get(f"/v1/artifacts/{pin.ref}").status_code == 200)
    return pin.ref


def test_files_go_round(here: Running) -> None:
    file = here.openai.files.create(file=("chat.jsonl", CHAT * 3), purpose="fine-tune")
    assert (file.status, file.filename, file.bytes) == ("processed", "chat.jsonl", 3 * len(CHAT))
    assert here.openai.files.retrieve(file.id).purpose == "fine-tune"
    assert here.openai.files.content(file.id).read() == CHAT * 3
    assert file.id in [one.id for one in here.openai.files.list(purpose="fine-tune")]
    assert file.id not in [one.id for one in here.openai.files.list(purpose="batch")]
    assert here.openai.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        here.openai.files.retrieve(file.id)


def test_a_list_can_be_emptied_while_it_is_paged(here: Running) -> None:
    for number in range(5):
        here.openai.files.create(file=(f"{number}.txt", b"text"), purpose="user_data")
    for file in here.openai.files.list(purpose="user_data", limit=2):
        here.openai.files.delete(file.id)
    assert list(here.openai.files.list(purpose="user_data")) == []


def test_a_fine_tuning_job_from_creation_to_its_model(world: GatewayWorld, here: Running) -> None:
    base = base_model(world, here)
    file_id = here.upload(CHAT)
    job = here.openai.fine_tuning.jobs.create(
        model=base,
        training_file=file_id,
        suffix="support",
        seed=7,
        method={
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": 3, "learning_rate_multiplier": 2, "batch_size": "auto"}},
        },
        metadata={"team": "a"},
        extra_body={"params": {"lora_r": 8}},
    )
    assert (job.status, job.model, job.training_file, job.fine_tuned_model) == ("queued", base, file_id, None)
    spec = eventually(lambda: world.scheduler.jobs.get(job.id)).spec
    assert spec.inputs["training_data"].ref == f"{file_id}@1"
    assert (spec.params["epochs"], spec.params["learning_rate"], spec.params["lora_r"]) == (3, 4e-4, 8)
    assert (spec.params["seed"], spec.output) == (7, "base-support")

    state = world.scheduler.start(job.id)
    words = {"job_id": job.id, "attempt": 1, "run_id": "run-a"}
    progress = Progress(step=5, total_steps=10, tokens=500, eta_s=30, metrics={"loss": 1.5}, **words)
    log(world, progress, job.id)
    running = eventually(
        lambda: job if (job := here.openai.fine_tuning.jobs.retrieve(job_id(state))).estimated_finish else None
    )
    assert running.status == "running"

    saved = CheckpointRef(step=5, key="k", attempt=1, run_id="run-a", at=progress.at, metrics={"loss": 1.5})
    pin = world.registry.put("base-support", ArtifactKind.adapter, {"adapter.safetensors": b"a"}, parents=[base])
    world.scheduler.move(job.id, JobStatus.succeeded, outputs=[pin], checkpoints=[saved], finished_at=progress.at)
    done = eventually(
        lambda: job if (job := here.openai.fine_tuning.jobs.retrieve(job_id(state))).status == "succeeded" else None
    )
    assert done.fine_tuned_model == pin.ref
    assert done.trained_tokens == 500
    checkpoints = list(here.openai.fine_tuning.jobs.checkpoints.list(job.id))
    assert [(one.step_number, one.metrics.train_loss) for one in checkpoints] == [(5, 1.5)]
    events = eventually(lambda: _told(here, job.id, "The job is succeeded."))
    assert any(event.type == "metrics" and "loss=1.5" in event.message for event in events)
    assert [event.id for event in here.openai.fine_tuning.jobs.list_events(job.id, limit=1)] == [e.id for e in events]
    assert job.id in [one.id for one in here.openai.fine_tuning.jobs.list(limit=1)]
    assert [one.id for one in here.openai.fine_tuning.jobs.list(metadata={"team": "b"})] == []


def job_id(state: object) -> str:
    return str(getattr(state, "job_id"))  # noqa: B009


def _told(here: Running, job: str, last: str) -> list[openai.types.fine_tuning.FineTuningJobEvent] | None:
    events = list(here.openai.fine_tuning.jobs.list_events(job))
    return events if any(event.message == last for event in events) else None


def test_pause_resume_and_cancel(world: GatewayWorld, here: Running) -> None:
    job = here.openai.fine_tuning.jobs.create(model=base_model(world, here), training_file=here.upload(CHAT))
    eventually(lambda: job.id in world.scheduler.jobs)
    assert here.openai.fine_tuning.jobs.pause(job.id).id == job.id
    world.scheduler.move(job.id, JobStatus.paused)
    eventually(lambda: here.openai.fine_tuning.jobs.retrieve(job.id).status == "paused")
    here.openai.fine_tuning.jobs.resume(job.id)
    here.openai.fine_tuning.jobs.cancel(job.id)
    told = ["PauseJob", "ResumeJob", "CancelJob"]
    eventually(
        lambda: told == [type(one).__name__ for one in world.scheduler.steered if one.job_id == job.id]  # type: ignore[attr-defined]
    )
    world.scheduler.move(job.id, JobStatus.cancelled)
    eventually(lambda: here.openai.fine_tuning.jobs.retrieve(job.id).status == "cancelled")
    with pytest.raises(openai.ConflictError, match="too late"):
        here.openai.with_options(max_retries=0).fine_tuning.jobs.cancel(job.id)


def test_a_failed_job_says_what_to_do(world: GatewayWorld, here: Running) -> None:
    job = here.openai.fine_tuning.jobs.create(model=base_model(world, here), training_file=here.upload(CHAT))
    failure = Failure(reason=FailureReason.bad_data, message="line 3: no messages.", hint="Mend it.", param="x")
    world.scheduler.move(job.id, JobStatus.failed, failure=failure)
    failed = eventually(
        lambda: one if (one := here.openai.fine_tuning.jobs.retrieve(job.id)).status == "failed" else None
    )
    assert failed.error is not None
    assert (failed.error.code, failed.error.message, failed.error.param) == (
        "bad_data",
        "line 3: no messages. Mend it.",
        "x",
    )


def test_models_are_listed_retrieved_and_deleted(world: GatewayWorld, here: Running) -> None:
    pin = world.registry.put("talker", ArtifactKind.model, {"model.safetensors": b"w"})
    eventually(lambda: pin.ref in [model.id for model in here.openai.models.list()])
    assert here.openai.models.retrieve("talker@latest").owned_by == "default"
    assert here.openai.models.retrieve(pin.ref).created > 0
    assert here.openai.models.delete(pin.ref).deleted
    assert pin.ref not in [model.id for model in here.openai.models.list()]
    with pytest.raises(openai.NotFoundError):
        here.openai.models.retrieve(pin.ref)


def test_errors_are_the_clients_own_classes(here: Running) -> None:
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{here.url}/v1", api_key="wrong").models.list()
    with pytest.raises(openai.NotFoundError) as missing:
        here.openai.fine_tuning.jobs.retrieve("job-nope")
    assert missing.value.code == "job_not_found"
    with pytest.raises(openai.NotFoundError) as unknown:
        here.openai.fine_tuning.jobs.create(model="nope", training_file="file-nope")
    assert (unknown.value.param, unknown.value.code) == ("model", "model_not_found")
