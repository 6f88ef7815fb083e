"""A process that is told to stop hears it, whenever that comes."""

from __future__ import annotations

import signal
import subprocess
import sys

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


def test_any_thread_may_ask() -> None:
    with process("threading.Thread(target=stop.ask).start()") as told:
        rest, _ = told.communicate(timeout=30)
        assert rest == "made\nstops\n"
        assert told.returncode == 0
