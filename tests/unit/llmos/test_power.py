"""`llmos up`: it says why it cannot, and leaves nothing running when nobody waits for it any more."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from llmos.cli import power
from llmos.cli.output import exit_code
from llmos.cli.session import Session
from llmos.embedded.errors import UpError
from llmos.embedded.layout import Layout
from llmos.embedded.processes import Child, Program, record
from llmos.embedded.running import lock_home, running
from llmos.embedded.supervisor import unusable
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
    assert power.stop_running(Session(None, None, tmp_path)) == power.Stopped()


IDLE = "import signal; signal.pause()"


def left_by_a_killed_start(layout: Layout) -> Child:
    """What `kill -9` of a supervisor leaves: a child, a record of it, and a lock that nobody holds."""
    layout.create()
    layout.lock_file.write_text(json.dumps({"pid": 2**22 - 1, "url": "http://127.0.0.1:9"}))
    child = Child(Program("trainer", [sys.executable, "-c", IDLE]), layout.logs / "trainer.log")
    child.start()
    record(layout.processes_file, [child])
    return child


def test_down_ends_what_a_killed_start_left_and_names_it(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    left = left_by_a_killed_start(layout)
    try:
        assert power.stop_running(Session(None, None, tmp_path)) == power.Stopped(leftovers=["trainer"])
        assert not left.running
        assert power.stop_running(Session(None, None, tmp_path)) == power.Stopped()
    finally:
        left.stop(0)


def test_down_does_not_take_what_is_being_started_for_leftovers(tmp_path: Path) -> None:
    """A start holds the lock before it says who it is."""
    layout = Layout(tmp_path)
    child = left_by_a_killed_start(layout)
    layout.lock_file.write_text("")
    try:
        with layout.lock_file.open() as lock:
            assert lock_home(lock)
            with pytest.raises(UpError, match="does not say who it is"):
                power.stop_running(Session(None, None, tmp_path), timeout_s=0)
        assert child.running
    finally:
        child.stop(0)


SLOW_TO_EXIT = """
import fcntl, json, os, signal, sys, time
lock = open(sys.argv[1], "w")
fcntl.flock(lock, fcntl.LOCK_EX)
lock.write(json.dumps({"pid": os.getpid(), "url": "http://127.0.0.1:9"}))
lock.flush()
def stop(*_):
    lock.close()
    time.sleep(0.5)
    os._exit(0)
signal.signal(signal.SIGTERM, stop)
print("up", flush=True)
while True:
    signal.pause()
"""


def test_down_returns_when_the_supervisor_has_ended_not_when_it_lets_go(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    supervisor = subprocess.Popen(
        [sys.executable, "-c", SLOW_TO_EXIT, str(layout.lock_file)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert supervisor.stdout is not None
        assert supervisor.stdout.readline() == "up\n"
        assert power.stop_running(Session(None, None, tmp_path)) == power.Stopped(supervisor=True)
        assert birth_of(supervisor.pid) is None
    finally:
        supervisor.kill()
        supervisor.communicate()


def test_a_second_up_is_told_from_a_failed_one(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.create()
    layout.lock_file.write_text(json.dumps({"pid": 1, "url": "http://127.0.0.1:9"}))
    with layout.lock_file.open() as lock:
        assert lock_home(lock)
        with pytest.raises(UpError) as raised:
            power.start_detached(Session(None, None, tmp_path), "127.0.0.1", 8000)
    assert exit_code(raised.value) == 5


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "Make room there, or give another"),
        (errno.EROFS, "Make it writable"),
        (errno.EEXIST, "Give another"),
    ],
)
def test_a_home_that_cannot_be_used_says_what_helps(number: int, advice: str, tmp_path: Path) -> None:
    error = OSError(number, os.strerror(number), str(tmp_path))
    told = str(unusable(Layout(tmp_path), error))
    assert f"{tmp_path}: {os.strerror(number)}. {advice}" in told
    assert "Errno" not in told
    assert ("Make room" in told) == (number == errno.ENOSPC)
