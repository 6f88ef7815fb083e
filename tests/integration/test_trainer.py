"""The trainer node with real child processes: what it reports, and what it does when something dies."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.contracts.artifacts import ArtifactKind, ArtifactPin, Manifest, ManifestFile, blob_key, manifest_key
from shared.contracts.jobs import (
    AttemptFailed,
    AttemptStarted,
    AttemptStopped,
    AttemptSucceeded,
    CheckpointSaved,
    FailureReason,
    LogLines,
    Place,
    Progress,
    Wish,
)
from shared.store.staging import read_manifest
from tests.ground import Ground
from tests.integration.trainer_node import TrainerNode, alive
from tests.waiting import eventually


@pytest.fixture
def node(tmp_path: Path, ground: Ground) -> Iterator[TrainerNode]:
    with TrainerNode(tmp_path, ground).running() as node:
        yield node


def test_an_attempt_reports_its_start_its_steps_its_checkpoints_and_its_success(node: TrainerNode) -> None:
    node.wish("j", params={"steps": 4, "checkpoint_every": 2, "log_line": "hello", "artifact_bytes": 5000})
    done = node.await_event(AttemptSucceeded, "j")

    kinds = [type(event) for event in node.events("j")]
    assert kinds == [AttemptStarted, CheckpointSaved, CheckpointSaved, AttemptSucceeded]
    assert {event.run_id for event in node.events("j")} == {done.run_id}
    manifest = read_manifest(node.store, f"{done.outputs[0].staged_prefix}/manifest.json")
    assert manifest.size_bytes == 5000
    assert manifest.metadata["job"] == "j"
    assert done.metrics["steps"] == 4
    last = node.logs(Progress, "j")[-1]
    assert (last.step, last.total_steps, last.percent, last.eta_s) == (4, 4, 100.0, 0.0)
    assert [line for lines in node.logs(LogLines, "j") for line in lines.lines].count("hello") == 4


def test_heartbeats_list_a_run_from_its_start_to_its_end(node: TrainerNode) -> None:
    node.wish("j", params={"steps": 1, "step_s": 0.5})
    started = node.await_event(AttemptStarted, "j")
    eventually(lambda: [run.run_id for run in node.heartbeats()[-1].runs] == [started.run_id])
    node.await_event(AttemptSucceeded, "j")
    eventually(lambda: node.heartbeats()[-1].runs == [])
    beats = node.heartbeats()
    assert [beat.seq for beat in beats] == list(range(len(beats)))
    assert len({beat.boot_id for beat in beats}) == 1
    assert beats[0].capacity.cpus > 0


def test_a_run_leaves_no_process_and_no_workdir(node: TrainerNode) -> None:
    node.wish("j", params={"steps": 2, "checkpoint_every": 1})
    pid = node.await_event(AttemptStarted, "j").pid
    node.await_event(AttemptSucceeded, "j")
    eventually(lambda: not alive(pid))
    eventually(lambda: list(node.runs.iterdir()) == [])


def test_an_attempt_that_ended_is_not_started_again(node: TrainerNode) -> None:
    desired = node.wish("j", params={"steps": 1})
    node.await_event(AttemptSucceeded, "j")
    node.rewish(desired)
    node.wish("other", params={"steps": 1})
    node.await_event(AttemptSucceeded, "other")
    assert len([event for event in node.events("j") if isinstance(event, AttemptStarted)]) == 1


def test_a_killed_child_is_a_retryable_crash_with_the_logs_last_lines(node: TrainerNode) -> None:
    node.wish("j", params={"steps": 1000, "step_s": 0.05, "log_line": "working"})
    started = node.await_event(AttemptStarted, "j")
    node.await_log("working", "j")
    os.kill(started.pid, signal.SIGKILL)
    failed = node.await_event(AttemptFailed, "j")
    assert failed.retryable
    assert failed.failure.reason is FailureReason.crashed
    assert "SIGKILL" in failed.failure.message
    assert failed.failure.log_tail[-1] == "working"


@pytest.mark.parametrize(
    ("fail_with", "reason", "retryable"),
    [
        ("user", FailureReason.bad_params, False),
        ("crash", FailureReason.crashed, True),
        ("kill", FailureReason.crashed, True),
        ("out_of_memory", FailureReason.out_of_memory, False),
    ],
)
def test_every_way_to_fail_has_its_reason(
    node: TrainerNode, fail_with: str, reason: FailureReason, retryable: bool
) -> None:
    node.wish("j", params={"steps": 3, "fail_at_step": 2, "fail_with": fail_with})
    failed = node.await_event(AttemptFailed, "j")
    assert (failed.failure.reason, failed.retryable) == (reason, retryable)
    assert failed.failure.message


def test_a_second_attempt_resumes_at_the_newest_checkpoint(node: TrainerNode) -> None:
    params = {"steps": 6, "checkpoint_every": 2, "fail_at_step": 5, "fail_with": "kill", "fail_attempts": 1}
    node.wish("j", params=params)
    node.await_event(AttemptFailed, "j")
    saved = [event.checkpoint for event in node.events("j") if isinstance(event, CheckpointSaved)]
    assert [checkpoint.step for checkpoint in saved] == [2, 4]
    node.wish("j", attempt=2, params=params, resume_from=saved[-1])
    assert node.await_event(AttemptSucceeded, "j", attempt=2).metrics["resumed_at"] == 4


def test_a_pause_saves_a_checkpoint_from_which_the_job_goes_on(node: TrainerNode) -> None:
    params = {"steps": 40, "step_s": 0.05}
    desired = node.wish("j", params=params)
    eventually(lambda: [progress for progress in node.logs(Progress, "j") if progress.step >= 3], 30)
    node.rewish(desired, wish=Wish.pause)
    assert node.await_event(AttemptStopped, "j").wish is Wish.pause
    checkpoint = node.await_event(CheckpointSaved, "j").checkpoint
    assert checkpoint.step >= 3
    assert isinstance(node.events("j")[-1], AttemptStopped)
    node.wish("j", attempt=2, params=params, resume_from=checkpoint)
    assert node.await_event(AttemptSucceeded, "j", attempt=2).metrics["resumed_at"] == checkpoint.step


def test_a_child_that_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path, ground: Ground) -> None:
    params = {"steps": 1000, "step_s": 0.05, "ignore_sigterm": True, "fail_at_step": 3, "fail_with": "hang"}
    with TrainerNode(tmp_path, ground, stop_grace_s=0.3).running() as node:
        desired = node.wish("j", params=params)
        pid = node.await_event(AttemptStarted, "j").pid
        eventually(lambda: [progress for progress in node.logs(Progress, "j") if progress.step == 2], 30)
        node.rewish(desired, wish=Wish.cancel)
        assert node.await_event(AttemptStopped, "j").wish is Wish.cancel
        eventually(lambda: not alive(pid))


def test_a_newer_attempt_supersedes_the_run_of_an_older_one(node: TrainerNode) -> None:
    node.wish("j", params={"steps": 1000, "step_s": 0.05})
    first = node.await_event(AttemptStarted, "j")
    node.wish("j", attempt=2, params={"steps": 1})
    assert node.await_event(AttemptStopped, "j").wish is Wish.none
    node.await_event(AttemptSucceeded, "j", attempt=2)
    assert not alive(first.pid)
    kinds = [(type(event), event.attempt) for event in node.events("j")]
    assert kinds.index((AttemptStopped, 1)) < kinds.index((AttemptStarted, 2))


def test_a_run_stops_when_another_was_accepted_in_its_place(node: TrainerNode) -> None:
    desired = node.wish("j", params={"steps": 1000, "step_s": 0.05})
    started = node.await_event(AttemptStarted, "j")
    node.rewish(desired, accepted={0: started.run_id})
    node.wish("other", params={"steps": 1})
    node.await_event(AttemptSucceeded, "other")
    assert alive(started.pid)
    node.rewish(desired, accepted={0: "another"})
    assert node.await_event(AttemptStopped, "j").wish is Wish.none
    assert not alive(started.pid)


def test_a_tombstone_stops_the_run(node: TrainerNode) -> None:
    node.wish("j", params={"steps": 1000, "step_s": 0.05})
    node.await_event(AttemptStarted, "j")
    node.forget("j")
    assert node.await_event(AttemptStopped, "j").wish is Wish.none


def test_a_place_on_another_node_or_an_accepted_run_is_left_alone(node: TrainerNode) -> None:
    node.wish("elsewhere", places=[Place(node="there")])
    node.wish("taken", accepted={0: "run of an earlier boot"})
    node.wish("j", params={"steps": 1})
    node.await_event(AttemptSucceeded, "j")
    assert node.events("elsewhere") == []
    assert node.events("taken") == []


def test_inputs_reach_the_child_and_are_the_outputs_parents(node: TrainerNode) -> None:
    pin = put_file(node, "data", b"some text\n")
    node.wish("j", params={"steps": 1}, inputs={"data": pin})
    done = node.await_event(AttemptSucceeded, "j")
    assert done.outputs[0].parents == ["data@1"]


def test_an_import_runs_in_the_child_as_any_job(node: TrainerNode, tmp_path: Path) -> None:
    source = tmp_path / "tiny"
    source.mkdir()
    (source / "config.json").write_text('{"architectures": ["TinyForCausalLM"], "max_position_embeddings": 64}')
    header = b'{"w": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}}'
    (source / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(12))
    node.wish("j", type="import", params={"source": str(source)})
    done = node.await_event(AttemptSucceeded, "j")
    manifest = read_manifest(node.store, f"{done.outputs[0].staged_prefix}/manifest.json")
    assert {file.path for file in manifest.files} == {"config.json", "model.safetensors"}
    facts = manifest.metadata
    assert (facts["source"], facts["task"], facts["parameters"]) == (str(source), "import", 6)


def test_a_refused_import_says_what_is_wrong_where(node: TrainerNode) -> None:
    node.wish("j", type="import", params={"source": "/nowhere/model"})
    failure = node.await_event(AttemptFailed, "j").failure
    assert (failure.reason, failure.param) == (FailureReason.input_missing, "source")
    assert "/nowhere/model" in failure.message


def put_file(node: TrainerNode, name: str, content: bytes) -> ArtifactPin:
    """Version 1 of a file artifact, as the registry leaves it in the store."""
    digest = hashlib.sha256(content).hexdigest()
    node.store.put_bytes(blob_key(digest), content)
    manifest = Manifest(files=[ManifestFile(path="data.txt", size_bytes=len(content), sha256=digest)])
    key = manifest_key("default", name, 1)
    node.store.put_bytes(key, manifest.model_dump_json().encode())
    return ArtifactPin(name=name, version=1, kind=ArtifactKind.file, manifest_key=key)
