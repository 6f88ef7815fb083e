"""Downloads: nothing that is there is lost, no device becomes a file, and nothing half is left."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import typer

from llmos.cli.target import target
from llmos.files import whole_file


def test_a_file_that_is_there_is_kept_unless_told_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.txt").write_text("mine")
    for output in (None, "data.txt", str(tmp_path)):
        with pytest.raises(typer.BadParameter, match=r"data.txt is there already: --force overwrites it"):
            target(output, "data.txt", force=False)
        found = target(output, "data.txt", force=True)
        assert isinstance(found, Path)
        assert found.resolve() == tmp_path / "data.txt"


def test_into_a_folder_under_its_own_name(tmp_path: Path) -> None:
    assert target(str(tmp_path), "x.tar", force=False) == tmp_path / "x.tar"
    assert target(f"{tmp_path}/new.tar", "x.tar", force=False) == tmp_path / "new.tar"


@pytest.mark.parametrize("output", ["none/x.tar", "none/"])
def test_a_folder_that_is_not_there_is_said_first(output: str, tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match=f"there is no folder {tmp_path}/none"):
        target(f"{tmp_path}/{output}", "x.tar", force=False)


@pytest.mark.parametrize(
    ("own_name", "file"),
    [
        ("../../etc/passwd", "passwd"),
        ("..", "download"),
        ("", "download"),
        ("a\x1b[2J\nb", "a_x1b[2J_nb"),
        ("C:\\x.txt", "C:_x.txt"),
    ],
)
def test_a_name_from_elsewhere_is_only_a_name(own_name: str, file: str, tmp_path: Path) -> None:
    assert target(str(tmp_path), own_name, force=False) == tmp_path / file


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    link.symlink_to(real)
    with whole_file(link) as out:
        out.write(b"new")
    assert link.is_symlink()
    assert real.read_bytes() == b"new"


def test_a_pipe_is_written_as_it_is(tmp_path: Path) -> None:
    pipe, got = tmp_path / "pipe", list[bytes]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    with whole_file(pipe) as out:
        out.write(b"through")
    reader.join(10)
    assert got == [b"through"]
    assert pipe.is_fifo()
    assert [entry.name for entry in tmp_path.iterdir()] == ["pipe"]


def test_what_fails_leaves_nothing_and_keeps_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_text("before")
    (tmp_path / "folder").mkdir()
    for target_file, data in ((file, "no bytes"), (tmp_path / "folder", b"half")):
        with pytest.raises((TypeError, IsADirectoryError)), whole_file(target_file) as out:
            out.write(data)  # type: ignore[arg-type]
    assert file.read_text() == "before"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder", "x"]
