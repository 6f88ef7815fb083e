"""What the trainer does when it, the bus or the store goes away."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

import psutil
import pytest

from services.trainer.leftovers import RunFolder
from shared.contracts.artifacts import ArtifactKind, ArtifactPin
from shared.contracts.jobs import (
    AttemptFailed,
    AttemptStarted,
    AttemptStopped,
    AttemptSucceeded,
    CheckpointSaved,
    FailureReason,
    LogLines,
    Progress,
    Wish,
)
from shared.contracts.message import Message, decode
from shared.contracts.nodes import NodeHeartbeat
from shared.contracts.topics import JOBS_EVENTS
from shared.store.port import OnBytes, StoreFull, StoreUnavailable
from tests.ground import Ground
from tests.integration.trainer_node import TrainerNode, alive
from tests.waiting import eventually

M = TypeVar("M", bound=Message)


class Store:
    """The ground's store, but for what a kind of it does otherwise."""

    def __init__(self, ground: Ground) -> None:
        self._store = ground.store()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class AwayStore(Store):
    """A store that can be away, or full."""

    trouble: Exception | None = None

    def put_file(self, key: str, path: Path, on_bytes: OnBytes | None = None) -> None:
        if self.trouble:
            raise self.trouble
        self._store.put_file(key, path, on_bytes)


class HangingStore(Store):
    """A store that is asked to take a file and never answers."""

    def __init__(self, ground: Ground) -> None:
        super().__init__(ground)
        self.asked = threading.Event()
        self.answers = threading.Event()

    def put_file(self, key: str, path: Path, on_bytes: OnBytes | None = None) -> None:
        self.asked.set()
        self.answers.wait(60)
        raise StoreUnavailable("the test is over")


@pytest.fixture
def hanging(ground: Ground) -> Iterator[HangingStore]:
    store = HangingStore(ground)
    yield store
    store.answers.set()


def threads(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(name)]


class Service:
    """The trainer as a process, and what it said."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        assert process.stdout
        self._stdout: IO[bytes] = process.stdout
        self.said: list[Message] = []

    def await_message(self, kind: type[M]) -> M:
        """The next one of that kind; blocks until the process says it or ends."""
        for line in self._stdout:
            message = decode(line)
            self.said.append(message)
            if isinstance(message, kind):
                return message
        raise AssertionError(f"the service ended without a {kind.__name__}: {self.said}")

    def rest(self) -> list[Message]:
        return [decode(line) for line in self._stdout]


@contextmanager
def service(home: Path, *arguments: str, node: str = "here") -> Iterator[Service]:
    environment = {**os.environ, "LLMOS_HOME": str(home), "LLMOS_NODE": node, "LLMOS_STOP_GRACE_S": "20"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.trainer_service", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
    )
    try:
        yield Service(process)
    finally:
        process.kill()
        process.wait()


def test_a_killed_trainer_takes_its_child_along_and_its_restart_clears_the_rest(tmp_path: Path) -> None:
    with service(tmp_path, "--stubborn") as first:
        pid = first.await_message(AttemptStarted).pid
        first.await_message(Progress)
        first.process.kill()
        eventually(lambda: not alive(pid))
    runs = tmp_path / "trainer" / "here" / "runs"
    left = {path.name for path in runs.iterdir()}
    assert left
    with service(tmp_path) as second:
        second.await_message(AttemptStarted)
        assert left.isdisjoint({path.name for path in runs.iterdir()})


def test_what_a_killed_container_left_is_cleared_by_the_next_that_has_another_name_and_nobody_elses(
    tmp_path: Path,
) -> None:
    with service(tmp_path, node="9b1c") as alive_beside, service(tmp_path, node="4f2e") as first:
        for trainer in (alive_beside, first):
            trainer.await_message(Progress)
        first.process.kill()
        first.process.wait()
        assert list((tmp_path / "trainer" / "4f2e" / "runs").iterdir())
        with service(tmp_path, node="77aa") as next_one:
            next_one.await_message(AttemptStarted)
            assert not (tmp_path / "trainer" / "4f2e").exists()
            assert list((tmp_path / "trainer" / ".abandoned").iterdir()) == []
            assert list((tmp_path / "trainer" / "9b1c" / "runs").iterdir())
            step = alive_beside.await_message(Progress).step
            assert alive_beside.await_message(Progress).step > step


def test_a_restart_ends_a_child_that_outlived_its_trainer(tmp_path: Path) -> None:
    """As when the kernel could not deliver the death signal: the record on disk is enough to find it."""
    folder = RunFolder(tmp_path)
    folder.workdir("r1")
    orphan = subprocess.Popen(["sleep", "600"], start_new_session=True, env={**os.environ, "LLM_OS_RUN_ID": "r1"})
    try:
        folder.record("r1", "j", 1, 0, orphan.pid)
        assert folder.end_leftovers() == ["r1"]
        assert not alive(orphan.pid)
        assert list(tmp_path.iterdir()) == []
    finally:
        orphan.kill()
        orphan.wait()


def test_a_store_that_never_answers_holds_no_cancelled_run(
    tmp_path: Path, ground: Ground, hanging: HangingStore
) -> None:
    node = TrainerNode(tmp_path, ground, hanging, stop_grace_s=1)
    with node.running():
        wish = node.wish("j", params={"steps": 100_000, "step_s": 0.01, "checkpoint_every": 1})
        assert hanging.asked.wait(30)
        node.rewish(wish, wish=Wish.cancel)
        assert node.await_event(AttemptStopped, "j").wish is Wish.cancel
        eventually(lambda: list(node.runs.iterdir()) == [])


def test_a_store_that_never_answers_holds_no_trainer_that_stops(
    tmp_path: Path, ground: Ground, hanging: HangingStore
) -> None:
    node = TrainerNode(tmp_path, ground, hanging, stop_grace_s=0)
    with node.running(farewell_s=0.5):
        node.wish("j", params={"steps": 100_000, "step_s": 0.01, "checkpoint_every": 1})
        assert hanging.asked.wait(30)
    eventually(lambda: not threads("run"))


def test_a_reused_pid_is_never_killed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    stranger = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        folder.record("r1", "j", 1, 0, stranger.pid)
        path = tmp_path / "r1.json"
        path.write_text(path.read_text().replace('"birth":"', '"birth":"x'))
        folder.end_leftovers()
        assert alive(stranger.pid)
    finally:
        stranger.kill()
        stranger.wait()


def test_an_orderly_stop_saves_a_checkpoint_and_gives_the_run_back(tmp_path: Path) -> None:
    with service(tmp_path) as trainer:
        pid = trainer.await_message(AttemptStarted).pid
        while trainer.await_message(Progress).step < 2:
            pass
        trainer.process.terminate()
        said = trainer.rest()
        assert trainer.process.wait(timeout=60) == 0
    kinds = [type(message) for message in said]
    failed = next(message for message in said if isinstance(message, AttemptFailed))
    assert kinds.index(CheckpointSaved) < kinds.index(AttemptFailed)
    assert (failed.failure.reason, failed.retryable) == (FailureReason.lost, True)
    last = said[-1]
    assert isinstance(last, NodeHeartbeat)
    assert last.stopping
    assert last.runs == []
    assert not alive(pid)


def test_a_second_trainer_of_the_same_name_is_refused_with_a_sentence(tmp_path: Path) -> None:
    with service(tmp_path) as first:
        first.await_message(NodeHeartbeat)
        second = subprocess.run(
            [sys.executable, "-m", "services.trainer"],
            env={**os.environ, "LLMOS_HOME": str(tmp_path), "LLMOS_NODE": "here"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert second.returncode == 2
    assert "LLMOS_NODE" in second.stderr
    assert "Traceback" not in second.stderr


def test_what_was_said_while_the_bus_was_away_comes_later_in_order(tmp_path: Path, ground: Ground) -> None:
    with TrainerNode(tmp_path, ground).running() as node:
        node.wish("j", params={"steps": 6, "step_s": 0.1, "checkpoint_every": 2, "log_line": "step"})
        pid = node.await_event(AttemptStarted, "j").pid
        with ground.bus_away():
            eventually(lambda: not alive(pid), 30)
        node.await_event(AttemptSucceeded, "j")
        steps = [event.checkpoint.step for event in node.events("j") if isinstance(event, CheckpointSaved)]
        assert steps == [2, 4, 6]
        assert isinstance(node.events("j")[-1], AttemptSucceeded)
        lines = [line for lines in node.logs(LogLines, "j") for line in lines.lines]
        assert lines.count("step") == 6


def test_a_run_cut_off_for_too_long_is_stopped_and_given_back(tmp_path: Path, ground: Ground) -> None:
    with TrainerNode(tmp_path, ground, orphan_timeout_s=1).running() as node:
        node.wish("j", params={"steps": 10_000, "step_s": 0.05})
        pid = node.await_event(AttemptStarted, "j").pid
        eventually(lambda: node.logs(Progress, "j"), 30)
        with ground.bus_away():
            eventually(lambda: not alive(pid), 30)
        failed = node.await_event(AttemptFailed, "j")
        assert (failed.failure.reason, failed.retryable) == (FailureReason.lost, True)


def test_uploads_wait_for_a_store_that_is_away(tmp_path: Path, ground: Ground) -> None:
    store = AwayStore(ground)
    store.trouble = StoreUnavailable("nobody answers")
    with TrainerNode(tmp_path, ground, store).running() as node:
        node.wish("j", params={"steps": 2, "checkpoint_every": 1})
        node.await_log("the object store is away", "j")
        assert node.said(JOBS_EVENTS, CheckpointSaved, "j") == []
        store.trouble = None
        node.await_event(AttemptSucceeded, "j")
        assert len(node.said(JOBS_EVENTS, CheckpointSaved, "j")) == 2


def test_a_cancel_does_not_wait_for_a_store_that_is_away(tmp_path: Path, ground: Ground) -> None:
    store = AwayStore(ground)
    store.trouble = StoreUnavailable("nobody answers")
    with TrainerNode(tmp_path, ground, store).running() as node:
        desired = node.wish("j", params={"steps": 1})
        node.await_log("the object store is away", "j")
        node.rewish(desired, wish=Wish.cancel)
        assert node.await_event(AttemptStopped, "j").wish is Wish.cancel


@pytest.mark.parametrize("steps", [1, 10_000])
def test_a_full_store_ends_the_run_with_a_hint(tmp_path: Path, ground: Ground, steps: int) -> None:
    store = AwayStore(ground)
    store.trouble = StoreFull("no room for the object")
    with TrainerNode(tmp_path, ground, store).running() as node:
        node.wish("j", params={"steps": steps, "step_s": 0.01, "checkpoint_every": 5})
        failed = node.await_event(AttemptFailed, "j")
        assert (failed.failure.reason, failed.retryable) == (FailureReason.disk_full, False)
        assert failed.failure.hint


def test_a_disk_that_refuses_the_start_ends_the_attempt_with_its_reason(
    tmp_path: Path, ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RunFolder, "record", full)
    with TrainerNode(tmp_path, ground).running() as node:
        node.wish("j", params={"steps": 1})
        failed = node.await_event(AttemptFailed, "j")
        assert (failed.failure.reason, failed.retryable) == (FailureReason.disk_full, False)
        assert [type(event) for event in node.events("j")] == [AttemptStarted, AttemptFailed]
        eventually(lambda: list(node.runs.iterdir()) == [])
        eventually(lambda: not threads("mover-"))


@pytest.mark.parametrize(
    ("what", "refusal"),
    [
        ("services.trainer.run.child_environment", UnicodeError("label empty or too long")),
        ("services.trainer.run.Supervision", OSError(errno.EMFILE, "Too many open files")),
        ("services.trainer.mover.Mover.start", RuntimeError("can't start new thread")),
        ("services.trainer.spawn.os.pidfd_open", OSError(errno.EMFILE, "Too many open files")),
    ],
)
def test_whatever_refuses_a_start_ends_that_attempt_and_nothing_else(
    tmp_path: Path, ground: Ground, monkeypatch: pytest.MonkeyPatch, what: str, refusal: Exception
) -> None:
    def refuse(*_: object) -> None:
        raise refusal

    before = set(psutil.Process().children())
    with TrainerNode(tmp_path, ground).running() as node:
        with monkeypatch.context() as patches:
            patches.setattr(what, refuse)
            node.wish("j", params={"steps": 1})
            failed = node.await_event(AttemptFailed, "j")
        assert failed.retryable
        assert str(refusal) in failed.failure.message
        assert [type(event) for event in node.events("j")] == [AttemptStarted, AttemptFailed]
        eventually(lambda: list(node.runs.iterdir()) == [])
        eventually(lambda: not threads("mover-"))
        assert set(psutil.Process().children()) == before
        node.wish("next", params={"steps": 1})
        node.await_event(AttemptSucceeded, "next")


def test_a_child_that_dies_before_it_begins_is_reported_while_its_inputs_are_still_pulled(
    tmp_path: Path, ground: Ground
) -> None:
    class Silent(Store):
        def get_bytes(self, key: str) -> bytes:
            asked.set()
            answers.wait(60)
            raise StoreUnavailable("the test is over")

    asked, answers = threading.Event(), threading.Event()
    pin = ArtifactPin(name="data", version=3, kind=ArtifactKind.file, manifest_key="manifests/default/data/3.json")
    try:
        with TrainerNode(tmp_path, ground, Silent(ground)).running() as node:
            node.wish("j", inputs={"data": pin})
            assert asked.wait(30)
            os.kill(node.await_event(AttemptStarted, "j").pid, signal.SIGKILL)
            failed = node.await_event(AttemptFailed, "j")
            assert (failed.failure.reason, failed.retryable) == (FailureReason.crashed, True)
    finally:
        answers.set()


def test_a_missing_input_is_named(tmp_path: Path, ground: Ground) -> None:
    with TrainerNode(tmp_path, ground).running() as node:
        pin = ArtifactPin(name="data", version=3, kind=ArtifactKind.file, manifest_key="manifests/default/data/3.json")
        node.wish("j", inputs={"data": pin})
        failed = node.await_event(AttemptFailed, "j")
        assert (failed.failure.reason, failed.retryable) == (FailureReason.input_missing, False)
        assert "manifests/default/data/3.json" in failed.failure.message


def test_inputs_wait_for_a_store_that_is_away_and_a_pause_does_not(tmp_path: Path, ground: Ground) -> None:
    class Unreadable(Store):
        def get_bytes(self, key: str) -> bytes:
            raise StoreUnavailable("nobody answers")

    pin = ArtifactPin(name="data", version=3, kind=ArtifactKind.file, manifest_key="manifests/default/data/3.json")
    with TrainerNode(tmp_path, ground, Unreadable(ground)).running() as node:
        desired = node.wish("j", inputs={"data": pin})
        node.await_log("the object store is away", "j")
        node.rewish(desired, wish=Wish.pause)
        assert node.await_event(AttemptStopped, "j").wish is Wish.pause
