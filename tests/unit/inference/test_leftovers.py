"""A restarted agent ends what an earlier one left, and nothing else."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from services.inference.leftovers import Leftovers
from tests.waiting import eventually

PARENT = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", "input()"])
print("started", flush=True)
input()
"""


@pytest.fixture
def replica() -> Iterator[subprocess.Popen[bytes]]:
    """A process that leads a group and has started another, as a replica with its engine."""
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def test_the_whole_group_of_a_recorded_replica_is_ended(tmp_path: Path, replica: subprocess.Popen[bytes]) -> None:
    engine = psutil.Process(replica.pid).children()[0]
    Leftovers(tmp_path).note("r1", replica.pid)
    assert Leftovers(tmp_path).end_all() == ["r1"]
    assert replica.wait(10) == -signal.SIGKILL
    eventually(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE)


def test_an_engine_that_outlived_its_replica_is_ended(tmp_path: Path, replica: subprocess.Popen[bytes]) -> None:
    engine = psutil.Process(replica.pid).children()[0]
    Leftovers(tmp_path).note("r1", replica.pid)
    replica.kill()
    replica.wait()
    assert engine.is_running()
    Leftovers(tmp_path).end_all()
    eventually(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE)


def test_a_later_process_with_the_same_number_is_spared(tmp_path: Path, replica: subprocess.Popen[bytes]) -> None:
    leftovers = Leftovers(tmp_path)
    leftovers.note("r1", replica.pid)
    record = tmp_path / "r1.json"
    record.write_text(record.read_text().replace('"birth":"', '"birth":"x'))
    assert leftovers.end_all() == ["r1"]
    assert replica.poll() is None


def test_a_record_lasts_until_it_is_forgotten(tmp_path: Path) -> None:
    leftovers = Leftovers(tmp_path)
    leftovers.note("r1")
    assert leftovers.end_all() == ["r1"]
    leftovers.forget("r1")
    leftovers.forget("r1")
    assert leftovers.end_all() == []
