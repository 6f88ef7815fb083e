"""`llmos up`: it says why it cannot, and leaves nothing running when nobody waits for it any more."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from llmos.cli import power
from llmos.cli.session import Session
from llmos.embedded.errors import UpError
from llmos.embedded.layout import Layout
from llmos.embedded.running import running
from shared.processes import birth_of
from tests.waiting import eventually


@pytest.fixture
def busy_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield int(taken.getsockname()[1])


def test_a_detached_start_that_fails_says_why_in_its_own_words(tmp_path: Path, busy_port: int) -> None:
    with pytest.raises(UpError) as raised:
        power.start_detached(Session(None, None, tmp_path), "127.0.0.1", busy_port)
    assert str(raised.value).startswith(f"cannot listen on 127.0.0.1:{busy_port}")
    assert running(Layout(tmp_path)) is None


def test_an_interrupted_detached_start_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    sleeper = tmp_path / "python"
    sleeper.write_text("#!/bin/sh\nexec sleep 600\n")
    sleeper.chmod(0o700)
    monkeypatch.setattr(power.sys, "executable", str(sleeper))
    monkeypatch.setattr(power, "_await_serving", interrupted)
    before = set(psutil.Process().children())
    with pytest.raises(KeyboardInterrupt):
        power.start_detached(Session(None, None, tmp_path / "home"), "127.0.0.1", 8000)
    assert set(psutil.Process().children()) == before


@pytest.mark.parametrize("count", [1, 2])
def test_ctrl_c_during_the_start_ends_what_was_started(tmp_path: Path, count: int) -> None:
    """With a bus that never answers, so that the start waits."""
    home, deaf = tmp_path / "home", tmp_path / "deaf"
    deaf.write_text("#!/bin/sh\nexec sleep 600\n")
    deaf.chmod(0o700)
    code = f"""
import sys
from pathlib import Path
from llmos.cli import main
from llmos.embedded import supervisor
supervisor.valkey_server = lambda: Path({str(deaf)!r})
supervisor.check_port = lambda *_: None
sys.argv = ["llmos", "--home", {str(home)!r}, "up"]
main()
"""
    up = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        children = eventually(lambda: found if len(found := psutil.Process(up.pid).children()) >= count else None, 30)
        up.send_signal(signal.SIGINT)
        up.communicate(timeout=30)
    finally:
        up.kill()
    assert up.returncode == 130
    assert not any(birth_of(child.pid) for child in children)
    assert not Layout(home).processes_file.exists()


def test_down_where_nothing_runs_is_no_error(tmp_path: Path) -> None:
    assert not power.stop_running(Session(None, None, tmp_path))
