"""Processes are told apart for sure, and a node's name belongs to one of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from shared.processes import Life, birth_of, kill_all, kill_group
from tests.waiting import eventually


def test_a_process_has_one_birth_for_as_long_as_it_lives() -> None:
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    birth = birth_of(other.pid)
    assert birth is not None
    assert birth_of(other.pid) == birth
    other.kill()
    eventually(lambda: birth_of(other.pid) is None, what="a zombie counts as gone")
    other.communicate()
    assert birth_of(other.pid) is None
    assert birth_of(os.getpid()) != birth


def test_a_child_dies_with_the_process_that_started_it() -> None:
    middle = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, stdin=subprocess.PIPE)
    assert middle.stdout
    child = int(middle.stdout.readline())
    assert birth_of(child) is not None
    middle.kill()
    middle.wait()
    eventually(lambda: birth_of(child) is None)
    middle.communicate()


PARENT = """
import os, signal, subprocess, sys
from shared.processes import die_with_parent
me = os.getpid()
child = subprocess.Popen(
    [sys.executable, "-c", "import signal; signal.pause()"],
    preexec_fn=lambda: die_with_parent(me),
    start_new_session=True,
)
print(child.pid, flush=True)
signal.pause()
"""


def test_ending_a_group_that_is_gone_does_nothing() -> None:
    done = subprocess.Popen(["true"], start_new_session=True)
    done.wait()
    kill_group(done.pid)


def test_a_signal_for_a_process_that_has_ended_reaches_nobody() -> None:
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    birth = birth_of(other.pid)
    assert birth
    Life(other.pid, "another boot:1").send(signal.SIGKILL)
    assert other.poll() is None
    assert kill_all([Life(other.pid, birth), Life(os.getpid(), "another boot:1")]) == []
    assert birth_of(other.pid) is None
    other.communicate()
    Life(other.pid, birth).send(signal.SIGKILL)
