"""A log on disk does not grow for ever."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shared.log_files import forget_old, rotate


def test_one_old_log_is_kept_where_one_grew_too_long(tmp_path: Path) -> None:
    log = tmp_path / "gateway.log"
    assert rotate(log, 3) == 0
    log.write_text("abc")
    assert rotate(log, 3) == 3
    log.write_text("abcd")
    assert rotate(log, 3) == 0
    assert log.read_text() == ""
    assert (tmp_path / "gateway.log.1").read_text() == "abcd"


def test_who_writes_to_a_log_goes_on_in_it(tmp_path: Path) -> None:
    log = tmp_path / "gateway.log"
    with log.open("ab", buffering=0) as writer:
        writer.write(b"abcd")
        rotate(log, 3)
        writer.write(b"ef")
        assert log.read_bytes() == b"ef"


def test_a_full_disk_costs_the_old_lines_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shared.log_files.shutil.copyfile", full)
    log = tmp_path / "gateway.log"
    log.write_text("abcd")
    assert rotate(log, 3) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["gateway.log"]


def test_old_logs_go_and_the_newest_stay(tmp_path: Path) -> None:
    logs = [tmp_path / f"{age}.log" for age in range(5)]
    for age, log in enumerate(logs):
        log.write_text("")
        os.utime(log, (100 - age, 100 - age))
    forget_old([*logs, tmp_path / "gone.log"], kept=3, max_age_s=1.5, now=100)
    assert sorted(tmp_path.iterdir()) == logs[:2]
    forget_old(logs, kept=1, max_age_s=1000, now=100)
    assert sorted(tmp_path.iterdir()) == logs[:1]
