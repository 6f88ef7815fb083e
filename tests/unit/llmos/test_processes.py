"""The supervisor's children: started again after a crash, ended with their groups, found after a kill."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmos.embedded.processes import Child, Program, end_leftovers, record
from shared.log_files import rotate
from shared.processes import birth_of, kill_group
from tests.waiting import eventually

WAITING = "import signal; print('here', flush=True); signal.pause()"
DEAF = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("here", flush=True)
while True:
    signal.pause()
"""
TALKING = """
import time
while True:
    print("still here", flush=True)
    time.sleep(0.001)
"""
WITH_A_CHILD = """
import signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
print(child.pid, flush=True)
signal.pause()
"""


@pytest.fixture
def children() -> Iterator[list[Child]]:
    started: list[Child] = []
    yield started
    for child in started:
        child.stop(0)


def started(children: list[Child], folder: Path, code: str) -> Child:
    child = Child(Program("fake", [sys.executable, "-c", code]), folder / "fake.log")
    children.append(child)
    child.start()
    eventually(lambda: child.last_lines(), what="the program says that it runs")
    return child


def test_a_crashed_program_is_started_again(tmp_path: Path, children: list[Child]) -> None:
    child = started(children, tmp_path, WAITING)
    first = child.pid
    assert first is not None
    assert not child.tend()
    os.kill(first, 9)
    eventually(child.tend)
    assert child.running
    assert child.pid != first
    assert child.restarts == 1


def test_one_that_cannot_be_started_now_is_tried_again(tmp_path: Path, children: list[Child]) -> None:
    (tmp_path / "logs").mkdir()
    child = started(children, tmp_path / "logs", WAITING)
    assert child.pid is not None
    os.kill(child.pid, 9)
    (tmp_path / "logs").rename(tmp_path / "away")

    def refused() -> bool:
        try:
            child.tend()
        except FileNotFoundError:
            return True
        return False

    eventually(refused)
    (tmp_path / "away").rename(tmp_path / "logs")
    eventually(child.tend)
    assert child.running


def test_one_that_does_not_listen_is_killed_after_its_grace(tmp_path: Path, children: list[Child]) -> None:
    child = started(children, tmp_path, DEAF)
    child.stop(0.1)
    assert child.process is not None
    assert child.process.returncode == -9


def test_what_a_program_started_ends_with_it(tmp_path: Path, children: list[Child]) -> None:
    child = started(children, tmp_path, WITH_A_CHILD)
    grandchild = int(child.last_lines()[0])
    assert birth_of(grandchild)
    child.stop(10)
    eventually(lambda: birth_of(grandchild) is None)


def test_the_log_of_one_that_runs_for_long_is_cut_under_it(
    tmp_path: Path, children: list[Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotate, "__defaults__", (1000,))
    child = started(children, tmp_path, TALKING)
    old = tmp_path / "fake.log.1"

    def cut() -> bool:
        child.tend()
        return old.exists()

    eventually(cut)
    before = child.log_file.read_bytes()
    eventually(lambda: child.log_file.read_bytes() != before, what="it goes on writing to the same log")
    assert child.restarts == 0
    assert b"\0" not in child.log_file.read_bytes()


@pytest.mark.parametrize("code", [WAITING, DEAF])
def test_what_a_killed_supervisor_left_is_ended(tmp_path: Path, children: list[Child], code: str) -> None:
    child = started(children, tmp_path, code)
    record(tmp_path / "processes.json", children)
    assert end_leftovers(tmp_path / "processes.json", grace_s=0.2) == ["fake"]
    eventually(lambda: not child.running)
    assert end_leftovers(tmp_path / "processes.json") == []


def test_what_outlived_the_program_that_started_it_is_ended(tmp_path: Path, children: list[Child]) -> None:
    child = started(children, tmp_path, WITH_A_CHILD)
    grandchild = int(child.last_lines()[0])
    record(tmp_path / "processes.json", children)
    assert child.process is not None
    child.process.kill()
    child.process.wait()
    assert birth_of(grandchild)
    assert end_leftovers(tmp_path / "processes.json", grace_s=0) == ["fake"]
    assert birth_of(grandchild) is None, "nothing of it holds a port or a file when this returns"


def test_another_process_with_a_recorded_number_is_spared(tmp_path: Path, children: list[Child]) -> None:
    child = started(children, tmp_path, WAITING)
    file = tmp_path / "processes.json"
    record(file, children)
    entries = json.loads(file.read_text())
    file.write_text(json.dumps([{**entry, "birth": "another boot:1"} for entry in entries]))
    assert end_leftovers(file) == []
    assert child.running


@pytest.mark.parametrize("text", ["", "[{"])
def test_a_record_that_the_power_cut_off_stops_no_start(tmp_path: Path, text: str) -> None:
    (tmp_path / "processes.json").write_text(text)
    assert end_leftovers(tmp_path / "processes.json") == []


def test_children_end_when_their_supervisor_is_killed(tmp_path: Path) -> None:
    code = f"""
import signal, sys
from pathlib import Path
from llmos.embedded.processes import Child, Program
child = Child(Program("fake", [sys.executable, "-c", {WAITING!r}]), Path({str(tmp_path / "fake.log")!r}))
child.start()
print(child.pid, flush=True)
signal.pause()
"""
    supervisor = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert supervisor.stdout
    child = int(supervisor.stdout.readline())
    try:
        assert birth_of(child)
        supervisor.kill()
        eventually(lambda: birth_of(child) is None)
    finally:
        kill_group(child)
        supervisor.communicate()
