"""Child processes that do not outlive their supervisor, and the ones that a killed supervisor left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.backoff import Backoff
from shared.log_files import rotate
from shared.processes import Life, await_end, birth_of, die_with_parent, group_of, kill_all, kill_group

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 10.0
HEALTHY_AFTER_S = 30.0


@dataclass(frozen=True)
class Program:
    """What to run under which name."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


def service(name: str, environment: Mapping[str, str]) -> Program:
    """One of the services, run by this same Python."""
    return Program(name, [sys.executable, "-m", f"services.{name}"], environment)


class Child:
    """One program that is kept running: after a crash it starts again, with growing pauses."""

    def __init__(self, program: Program, log_file: Path) -> None:
        self.program = program
        self.log_file = log_file
        self.restarts = 0
        self.process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._backoff = Backoff(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        self._start_at: float | None = None

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process else None

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        supervisor = os.getpid()
        rotate(self.log_file)
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                self.program.command,
                env={**os.environ, **self.program.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C on the terminal is for the supervisor, which stops them in order
                preexec_fn=lambda: die_with_parent(supervisor, signal.SIGTERM),
            )
        self._started_at = time.monotonic()
        self._start_at = None

    def tend(self) -> bool:
        """Start it again when it is down and its pause is over; bound its log while it runs. True if it was started."""
        if self.running:
            with suppress(OSError):  # what cannot be cut now is cut later
                rotate(self.log_file)
            return False
        now = time.monotonic()
        if self._start_at is None:
            if now - self._started_at > HEALTHY_AFTER_S:
                self._backoff.reset()
            self._start_at = now + self._backoff.next_s()
        if now < self._start_at:
            return False
        self.restarts += 1
        self._start_at = None
        self.start()
        return True

    def stop(self, grace_s: float) -> None:
        """SIGTERM, then SIGKILL for its whole group."""
        if self.process is None:
            return
        if self.running:
            self.process.terminate()
            try:
                self.process.wait(grace_s)
            except subprocess.TimeoutExpired:
                pass
        kill_group(self.process.pid)
        self.process.wait()

    def last_lines(self, count: int = 5) -> list[str]:
        """The end of its log."""
        if not self.log_file.exists():
            return []
        with self.log_file.open("rb") as log:
            log.seek(max(0, self.log_file.stat().st_size - 16_384))
            return log.read().decode(errors="replace").splitlines()[-count:]


def record(file: Path, children: Sequence[Child]) -> None:
    """Write down who runs, each with its birth: a pid alone may come to mean another process."""
    entries = [
        {"name": child.program.name, "pid": child.pid, "birth": birth_of(child.pid)}
        for child in children
        if child.running and child.pid is not None
    ]
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(entries))
    temporary.replace(file)


def end_leftovers(file: Path, grace_s: float = 10.0) -> list[str]:
    """End the children of a supervisor that was killed, with their groups. Returns the names of those still there.

    The kernel has sent them SIGTERM when their supervisor ended, the queues among them: whoever still works can tell
    nobody, so that a longer grace, such as an orderly stop gives a last checkpoint, would save nothing.
    """
    left = [(name, leader, group) for name, leader in _recorded(file) if (group := group_of(leader))]
    for _, leader, _ in left:
        leader.send(signal.SIGTERM)
    kill_all(await_end([life for _, _, group in left for life in group], grace_s))
    file.unlink(missing_ok=True)
    return [name for name, _, _ in left]


def _recorded(file: Path) -> list[tuple[str, Life]]:
    try:
        entries: list[dict[str, Any]] = json.loads(file.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return []  # nothing ran, or the power failed while it was written, and then nothing runs now
    return [(entry["name"], Life(entry["pid"], entry["birth"])) for entry in entries]
