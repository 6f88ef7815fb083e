"""Jobs over several nodes: all ranks or none, one result, and one lost rank costs the attempt, not the job."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.contracts.artifacts import ArtifactKind
from shared.contracts.jobs import (
    AttemptFailed,
    AttemptStarted,
    AttemptStopped,
    AttemptSucceeded,
    CancelJob,
    CheckpointSaved,
    FailureReason,
    PauseJob,
    Resources,
    ResumeJob,
)
from tests.ground import Ground
from tests.integration.gang_world import GangWorld
from tests.integration.tiny_models import chats, tiny_model
from tests.waiting import eventually

SMALL: dict[str, Any] = {
    "vocab_size": 300,
    "context_length": 32,
    "hidden_size": 32,
    "layers": 2,
    "heads": 2,
    "batch_size": 2,
    "precision": "fp32",
    "validation_fraction": 0,
    "learning_rate": 0.01,
}
TEXT = "".join(
    f"Line {number} says that {number * 7 % 13} is not {number * 5 % 11}.\n" for number in range(400)
).encode()


@pytest.fixture
def world(tmp_path: Path, ground: Ground) -> Iterator[GangWorld]:
    world = GangWorld(tmp_path, ground)
    world.start_scheduler()
    yield world
    world.close()
    assert not world.failures
    assert not world.children()


def pretrain(world: GangWorld, nodes: int = 2, ranks_per_node: int | None = None, **params: Any) -> str:
    return world.submit(
        type="pretrain",
        params={**SMALL, **params},
        resources=Resources(nodes=nodes, ranks_per_node=ranks_per_node),
        inputs={"training_data": world.file("text", TEXT)},
        output_kind=ArtifactKind.model,
    )


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_ranks_learn_what_one_learns_from_batches_twice_as_large(world: GangWorld) -> None:
    with world.two_nodes():
        gang = pretrain(world, max_steps=6)
        together = world.until(gang, "succeeded", 120)
        one = pretrain(world, nodes=1, max_steps=6, batch_size=4)
        alone = world.until(one, "succeeded", 120)

    assert together.metrics["train_loss"] == pytest.approx(alone.metrics["train_loss"], abs=0.01)
    assert together.metrics["train_loss"] < together.metrics["train_loss_first"] - 0.3
    assert together.metrics["tokens"] == alone.metrics["tokens"] == 6 * 4 * 32
    assert [place.node for place in together.attempts[-1].places] == ["n1", "n2"]
    assert [asked.job_id for asked in world.publications.asked] == [gang, one]
    assert world.output(gang, "training.json")["batch_size"] == 2
    assert {made.rank for made in world.progress(gang)} == {0}
    assert {saved.rank for saved in world.events(CheckpointSaved, gang)} == {0}
    assert not [line for rank, line in world.lines(gang) if rank and "characters" in line]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_killed_rank_costs_the_attempt_and_the_next_one_goes_on_from_the_checkpoint(world: GangWorld) -> None:
    with world.two_nodes():
        job = pretrain(world, max_steps=2000, save_steps=20)
        eventually(lambda: world.events(CheckpointSaved, job), 120)
        world.child(job, attempt=1, rank=1).kill()
        resumed = eventually(lambda: world.progress(job, attempt=2), 120)
        state = world.state(job)
        assert state
        assert state.attempts[0].outcome == "failed"
        failure = state.attempts[0].failure
        assert failure
        assert failure.message.startswith("Rank 1 on n2: The training process was killed by signal 9")
        assert resumed[0].step > 20
        assert {started.rank for started in world.events(AttemptStarted, job, attempt=2)} == {0, 1}
        world.command(CancelJob(job_id=job))
        world.until(job, "cancelled", 60)
    assert not world.publications.asked


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_paused_gang_saves_once_and_goes_on_from_there(world: GangWorld, tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base")
    data = world.file("chats", "".join(json.dumps(line) + "\n" for line in chats()).encode(), "data.jsonl")
    params = {"base_model": str(base), "max_steps": 150, "save_steps": 1000, "batch_size": 2, "precision": "fp32"}
    with world.two_nodes():
        job = world.submit_gang("sft", params=params, inputs={"training_data": data}, output_kind=ArtifactKind.adapter)
        eventually(lambda: world.progress(job), 120)
        world.command(PauseJob(job_id=job))
        paused = world.until(job, "paused", 60)
        (saved,) = paused.checkpoints
        assert 0 < saved.step < 150
        eventually(lambda: {stopped.rank for stopped in world.events(AttemptStopped, job)} == {0, 1})
        world.command(ResumeJob(job_id=job))
        done = world.until(job, "succeeded", 120)

    assert world.progress(job, attempt=2)[0].step > saved.step
    assert done.metrics["train_loss"] < done.metrics["train_loss_first"]
    assert [pin.kind for pin in done.outputs] == [ArtifactKind.adapter]
    assert len(world.publications.asked) == 1
    assert {saved.rank for saved in world.events(CheckpointSaved, job)} == {0}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_ranks_on_each_of_two_nodes_learn_what_one_learns_and_survive_a_killed_one(world: GangWorld) -> None:
    with world.two_nodes():
        job = pretrain(world, ranks_per_node=2, max_steps=40, save_steps=5, batch_size=1, logging_steps=1)
        eventually(lambda: world.events(CheckpointSaved, job), 240)
        world.child(job, attempt=1, rank=3).kill()
        together = world.until(job, "succeeded", 240)
        one = pretrain(world, nodes=1, max_steps=40, batch_size=4)
        alone = world.until(one, "succeeded", 120)

    first, last = together.attempts[0], together.attempts[-1]
    assert first.failure
    assert first.failure.message.startswith("Rank 3 on n2: The training process was killed by signal 9")
    assert len(together.attempts) == 2
    assert [(place.node, place.rank) for place in last.places] == [("n1", 0), ("n1", 1), ("n2", 2), ("n2", 3)]
    assert {started.rank for started in world.events(AttemptStarted, job, attempt=2)} == {0, 1, 2, 3}
    assert world.progress(job, attempt=2)[0].step > 5
    assert together.metrics["train_loss"] == pytest.approx(alone.metrics["train_loss"], abs=0.02)
    assert together.metrics["tokens"] == alone.metrics["tokens"] == 40 * 4 * 32
    assert world.output(job, "training.json")["batch_size"] == 1
    assert [asked.job_id for asked in world.publications.asked] == [job, one]
    assert {saved.rank for saved in world.events(CheckpointSaved, job)} == {0}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_several_ranks_on_one_node_train_together(world: GangWorld) -> None:
    with world.node("n1"):
        job = pretrain(world, nodes=1, ranks_per_node=2, max_steps=6)
        together = world.until(job, "succeeded", 240)
        alone = world.until(pretrain(world, nodes=1, max_steps=6, batch_size=4), "succeeded", 120)
    assert {started.rank for started in world.events(AttemptStarted, job)} == {0, 1}
    assert together.metrics["train_loss"] == pytest.approx(alone.metrics["train_loss"], abs=0.01)
    assert together.metrics["tokens"] == alone.metrics["tokens"]


def test_all_ranks_of_a_gang_start_or_none_does(world: GangWorld) -> None:
    with world.node("n1"):
        resources = Resources(nodes=2, ranks_per_node=2)
        job = world.submit(type="probe", params={"steps": 2}, resources=resources)
        eventually(lambda: (state := world.state(job)) and "needs 2 such nodes at once" in state.reason)
        assert not world.events(AttemptStarted, job)
        with world.node("n2"):
            done = world.until(job, "succeeded", 60)
    assert {started.rank for started in world.events(AttemptStarted, job)} == {0, 1, 2, 3}
    assert len(done.attempts) == len(world.publications.asked) == 1


def test_a_gang_starts_on_all_its_nodes_or_not_at_all(world: GangWorld) -> None:
    with world.node("n1"):
        job = world.submit_gang("probe", params={"steps": 2})
        eventually(lambda: (state := world.state(job)) and "needs 2 such nodes at once" in state.reason)
        assert not world.events(AttemptStarted, job)
        with world.node("n2"):
            done = world.until(job, "succeeded", 60)

    assert {started.rank for started in world.events(AttemptStarted, job)} == {0, 1}
    assert [len(success.outputs) for success in world.events(AttemptSucceeded, job) if success.rank == 0] == [1]
    assert len(done.attempts) == len(world.publications.asked) == 1
    assert {made.rank for made in world.progress(job)} == {0}


def test_a_cancelled_gang_stops_on_every_node(world: GangWorld) -> None:
    with world.two_nodes():
        job = world.submit_gang("probe", params={"steps": 2, "step_s": 600})
        world.until(job, "running", 60)
        children = [world.child(job, 1, rank) for rank in (0, 1)]
        world.command(CancelJob(job_id=job))
        world.until(job, "cancelled", 30)
        eventually(lambda: not any(child.is_running() for child in children), 30)


def test_what_the_user_must_mend_fails_a_gang_at_once(world: GangWorld) -> None:
    with world.two_nodes():
        job = world.submit_gang("probe", params={"steps": 2, "fail_at_step": 1, "fail_with": "user"})
        failed = world.until(job, "failed", 60)
    assert failed.failure
    assert failed.failure.reason is FailureReason.bad_params
    assert failed.failure.message.startswith("Rank ")
    assert len(failed.attempts) == 1
    assert {fault.retryable for fault in world.events(AttemptFailed, job)} == {False}
