"""A log on disk does not grow for ever."""

from __future__ import annotations

from pathlib import Path

from shared.log_files import rotate


def test_one_old_log_is_kept_where_one_grew_too_long(tmp_path: Path) -> None:
    log = tmp_path / "gateway.log"
    assert rotate(log, 3) == 0
    log.write_text("abc")
    assert rotate(log, 3) == 3
    log.write_text("abcd")
    assert rotate(log, 3) == 0
    assert not log.exists()
    assert (tmp_path / "gateway.log.1").read_text() == "abcd"
