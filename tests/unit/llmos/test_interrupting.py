"""A Ctrl-C ends the command with 130 and no traceback, at any moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import llmos


@pytest.mark.parametrize("module", ["typer", "httpx", "pydantic"])
def test_while_its_imports_run(module: str, tmp_path: Path) -> None:
    (tmp_path / f"{module}.py").write_text("import signal\nprint('importing', flush=True)\nsignal.pause()\n")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    command = [sys.executable, "-m", "llmos", "--home", str(tmp_path / "home"), "up"]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background of a shell
    up = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert up.stdout is not None
        assert up.stdout.readline() == "importing\n"
        up.send_signal(signal.SIGINT)
        _, said = up.communicate(timeout=30)
    finally:
        up.kill()
    assert (up.returncode, said) == (130, "")


def test_the_names_of_the_library_are_there_all_the_same() -> None:
    for name in llmos.__all__:
        assert getattr(llmos, name).__name__ == name
    with pytest.raises(AttributeError, match="nonsense"):
        _ = llmos.nonsense
