"""Inside the child: parameters are read once more, and unknown types are refused."""

from __future__ import annotations

import errno
import io
import threading
from pathlib import Path
from typing import Any

import pytest

from services.trainer import protocol
from services.trainer.execution import execute
from services.trainer.recipes import probe
from services.trainer.recipes.api import MadeOutput, PeersLost


class Ready:
    """An Inbox that has been told to begin."""

    def __init__(self, begin: protocol.Begin) -> None:
        self._begin = begin

    def begin(self) -> protocol.Begin:
        return self._begin

    def wait_uploaded(self, step: int) -> None:
        """At once."""


def executed(tmp_path: Path, job_type: str = "probe", attempt: int = 1, **params: Any) -> protocol.Report:
    spec = {"type": job_type, "params": params, "output": "thing"}
    begin = protocol.Begin(spec, {}, str(tmp_path), attempt)
    return execute(job_type, Ready(begin), io.BytesIO(), threading.Event())  # type: ignore[arg-type]


def test_an_unknown_type_is_refused_with_those_there_are(tmp_path: Path) -> None:
    word = executed(tmp_path, "alchemy")
    assert isinstance(word, protocol.Failed)
    assert not word.retryable
    assert "probe" in word.message


def test_a_parameter_that_does_not_fit_is_named(tmp_path: Path) -> None:
    word = executed(tmp_path, steps="many")
    assert isinstance(word, protocol.Failed)
    assert (word.reason, word.param, word.retryable) == ("bad_params", "steps", False)


def test_only_the_first_attempts_fail_when_so_told(tmp_path: Path) -> None:
    how: dict[str, Any] = {"steps": 2, "fail_at_step": 1, "fail_with": "user", "fail_attempts": 1}
    assert isinstance(executed(tmp_path, attempt=1, **how), protocol.Failed)
    assert isinstance(executed(tmp_path, attempt=2, **how), protocol.Done)


def test_a_pickle_comes_out_as_a_model_with_a_bin_file(tmp_path: Path) -> None:
    word = executed(tmp_path, steps=1, fail_at_step=1, fail_with="pickle")
    assert isinstance(word, protocol.Done)
    (output,) = word.outputs
    assert output.kind == "model"
    assert [path.name for path in Path(output.folder).iterdir()] == ["pytorch_model.bin"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "/cache/model.safetensors"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_one_sentence_without_a_trace_and_no_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], error: Exception
) -> None:
    def fill_the_disk(_: object) -> None:
        try:
            raise error
        except type(error) as cause:
            raise ValueError("cannot be saved") from cause

    monkeypatch.setattr("services.trainer.recipes.probe.run", fill_the_disk)
    word = executed(tmp_path)
    assert isinstance(word, protocol.Failed)
    assert (word.reason, word.retryable) == ("disk_full", False)
    assert "disk is full" in word.message
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_crash_leaves_its_trace_in_the_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    word = executed(tmp_path, fail_at_step=1, fail_with="crash")
    assert isinstance(word, protocol.Failed)
    assert word.reason == "crashed"
    assert "Traceback" in capfd.readouterr().err


def test_only_rank_0_reports_and_makes_outputs(tmp_path: Path) -> None:
    for rank, made in ((0, 1), (1, 0)):
        (tmp_path / str(rank)).mkdir()
        spec = {"type": "probe", "params": {"steps": 2, "checkpoint_every": 1}, "output": "thing"}
        gang = protocol.Gang(rank, 2, rank, 2, 0, "127.0.0.1:1", "j/1", timeout_s=1, backend="auto")
        begin, reports = protocol.Begin(spec, {}, str(tmp_path / str(rank)), gang=gang), io.BytesIO()
        word = execute("probe", Ready(begin), reports, threading.Event())  # type: ignore[arg-type]
        assert isinstance(word, protocol.Done)
        assert len(word.outputs) == made
        assert bool(reports.getvalue()) is bool(made)


def test_lost_peers_are_a_lost_attempt_that_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def recipe(_: object) -> list[MadeOutput]:
        raise PeersLost("of its 2 ranks these did not come within 1 s: 1")

    monkeypatch.setattr(probe, "run", recipe)
    word = executed(tmp_path)
    assert isinstance(word, protocol.Failed)
    assert (word.reason, word.retryable) == ("lost", True)
    assert word.message == "of its 2 ranks these did not come within 1 s: 1"


def test_orders_and_reports_survive_the_pipe() -> None:
    begin = protocol.Begin({"type": "probe"}, {"data": "/x"}, "/w", 2, "/c")
    assert protocol.decode_order(protocol.encode(begin)) == begin
    done = protocol.Done([protocol.OutputMade("a", "model", "/f", {"where": Path("/p")})])
    decoded = protocol.decode_report(protocol.encode(done))
    assert isinstance(decoded, protocol.Done)
    assert decoded.outputs[0].metadata == {"where": "/p"}
