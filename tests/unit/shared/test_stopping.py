"""A process that is told to stop hears it, whenever that comes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

from tests.waiting import eventually

WAITS = """
import threading
from shared.stopping import Stop
stop = Stop()
threading.Thread(target=threading.Event().wait, daemon=True).start()
print("made", flush=True)
{meanwhile}
stop.wait_until_asked()
print("stops", flush=True)
"""


def process(meanwhile: str) -> subprocess.Popen[str]:
    code = WAITS.format(meanwhile=meanwhile)
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_signal_that_comes_before_anyone_waits_is_not_missed() -> None:
    with process("input()") as told:
        assert told.stdout
        assert told.stdout.readline() == "made\n"
        told.send_signal(signal.SIGTERM)
        rest, _ = told.communicate("go on\n", timeout=30)
        assert rest == "stops\n"
        assert told.returncode == 0


def test_a_process_that_was_frozen_for_longer_than_it_waits_goes_on() -> None:
    with process('while not stop.wait(0.01): print("waits", flush=True)') as told:
        assert told.stdout
        for _ in range(10):
            while told.stdout.readline() != "waits\n":
                assert told.poll() is None
            told.send_signal(signal.SIGSTOP)
            thaws_at_s = time.monotonic() + 0.1
            eventually(lambda thaws_at_s=thaws_at_s: time.monotonic() > thaws_at_s)  # type: ignore[misc]
            told.send_signal(signal.SIGCONT)
        told.send_signal(signal.SIGTERM)
        rest, _ = told.communicate(timeout=30)
        assert told.returncode == 0
        assert rest.endswith("stops\n")


def test_any_thread_may_ask() -> None:
    with process("threading.Thread(target=stop.ask).start()") as told:
        rest, _ = told.communicate(timeout=30)
        assert rest == "made\nstops\n"
        assert told.returncode == 0
