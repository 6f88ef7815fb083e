"""Folders of names that nobody has are cleared; those of names that somebody has are not touched."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from shared.abandoned import clear_abandoned
from shared.contracts.nodes import Role
from shared.node_name import NodeName


def left_by(home: Path, node: str) -> None:
    """A folder with something in it, of one that had the name and was killed."""
    NodeName(home, node, Role.trainer).close()
    (home / node / "runs" / "r1").mkdir(parents=True)
    (home / node / "runs" / "r1" / "checkpoint").write_text("large")


def contents(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


def test_only_what_nobody_has_is_cleared_and_what_runs_there_is_ended_first(tmp_path: Path) -> None:
    for node in ("gone", "mine", "beside"):
        left_by(tmp_path, node)
    ended: list[list[str]] = []
    with NodeName(tmp_path, "mine", Role.trainer), NodeName(tmp_path, "beside", Role.trainer):
        assert clear_abandoned(tmp_path, lambda folder: ended.append(contents(folder))) == ["gone"]
        assert ended == [["checkpoint"]]
        assert contents(tmp_path) == ["checkpoint"] * 2
        assert clear_abandoned(tmp_path, lambda folder: ended.append(contents(folder))) == []
    assert len(ended) == 1


def test_who_has_the_name_may_come_back_meanwhile(tmp_path: Path) -> None:
    left_by(tmp_path, "gone")

    def come_back(_: Path) -> None:
        with NodeName(tmp_path, "gone", Role.trainer):
            left_by(tmp_path, "other")

    assert clear_abandoned(tmp_path, come_back) == ["gone"]
    assert not (tmp_path / "gone").exists()


def test_what_one_that_was_killed_meanwhile_did_not_clear_is_cleared_by_the_next(tmp_path: Path) -> None:
    left_by(tmp_path, "gone")

    def killed(_: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        clear_abandoned(tmp_path, killed)
    assert contents(tmp_path) == ["checkpoint"]
    clear_abandoned(tmp_path, lambda folder: None)
    assert contents(tmp_path) == []


def test_a_folder_that_cannot_be_cleared_stops_nobody(tmp_path: Path) -> None:
    left_by(tmp_path, "gone")

    def broken(_: Path) -> None:
        raise PermissionError("not yours")

    clear_abandoned(tmp_path, broken)
    assert contents(tmp_path) == ["checkpoint"]


def test_two_that_start_at_once_may_clear_side_by_side(tmp_path: Path) -> None:
    for number in range(20):
        left_by(tmp_path, f"gone-{number}")
        for file in range(20):
            (tmp_path / f"gone-{number}" / "runs" / str(file)).touch()
    both = threading.Barrier(2)
    found: list[str] = []

    def start() -> None:
        both.wait()
        found.extend(clear_abandoned(tmp_path, lambda folder: None))

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted({f"gone-{number}" for number in range(20)})
    assert contents(tmp_path) == []
