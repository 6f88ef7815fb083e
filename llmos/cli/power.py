"""`llmos up` and `llmos down`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from rich.live import Live
from rich.table import Table

from llmos.cli.output import AsJson, coloured, console, errors, say, show
from llmos.cli.session import Session, session_of
from llmos.embedded.address import not_ready
from llmos.embedded.errors import StartInterrupted, UpError
from llmos.embedded.layout import Layout
from llmos.embedded.processes import end_leftovers
from llmos.embedded.running import LOCK_PATIENCE_S, Running, lock_home, running
from llmos.embedded.supervisor import START_S, Supervisor, already_up, unusable
from shared.processes import LOOK_EVERY_S, Life, await_end, birth_of

STOP_S = 180
TEND_EVERY_S = 0.2
LAST_WORDS_S = 30.0
"""For a start that has given up: to stop what it started and to say why."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def register(app: typer.Typer) -> None:
    for command in (up, down):
        app.command()(command)


Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")]


def up(
    context: typer.Context,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Run in the background.")] = False,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds that the start may take.")] = START_S,
    as_json: AsJson = False,
) -> None:
    """Start LLM OS on this machine. Ctrl-C stops it; all jobs and models stay."""
    session = session_of(context)
    key_file = session.layout.key_file
    if detach:
        here = start_detached(session, host, port, timeout)
        value = {"url": here.url, "pid": here.pid, "home": str(session.home), "key_file": str(key_file)}
        show(value, as_json, lambda: say(f"LLM OS is up at {here.url}; its key is in {key_file}"))
        return
    supervisor = Supervisor(session.layout, host, port)
    asked = StopSignals()
    try:
        supervisor.start(_step, timeout, lambda: asked.came)
        value = {"url": supervisor.url, "pid": os.getpid(), "home": str(session.home), "key_file": str(key_file)}
        show(
            value, as_json, lambda: say(f"LLM OS is up at {supervisor.url}; its key is in {key_file}; Ctrl-C stops it")
        )
        _tend(supervisor, asked, table=console.is_terminal and not as_json)
    except StartInterrupted:
        raise typer.Exit(130) from None
    finally:
        # A second Ctrl-C must not leave half of them behind.
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        supervisor.stop(lambda name: _step(f"stopping {name}"))


class StopSignals:
    """Notes that a signal to stop has come, for whoever looks. It raises nothing, since it would do so in the middle of
    anything, such as the start of a child that nobody would know of; nor does it take a lock that may be held there."""

    def __init__(self) -> None:
        self.came = False
        for number in STOP_SIGNALS:
            signal.signal(number, self._note)

    def _note(self, *_: object) -> None:
        self.came = True


def start_detached(session: Session, host: str, port: int, timeout_s: float = START_S) -> Running:
    """Run `llmos up` in a session of its own and return once it serves. Raises UpError, and leaves nothing running."""
    layout = session.layout
    if other := running(layout):
        raise already_up(layout, other)
    log_file = layout.logs / "llmos.log"
    options = ["--host", host, "--port", str(port), "--timeout", str(timeout_s)]
    command = [sys.executable, "-m", "llmos", "--home", str(layout.home), "up", *options]
    try:
        layout.create()
        with log_file.open("wb") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
    except OSError as error:
        raise unusable(layout, error) from error
    try:
        return _await_serving(process, session, log_file, time.monotonic() + timeout_s + LAST_WORDS_S)
    except BaseException:  # also Ctrl-C: what nobody waits for any more must not stay
        process.terminate()
        process.wait()
        raise


def _await_serving(process: subprocess.Popen[bytes], session: Session, log_file: Path, deadline: float) -> Running:
    while True:
        here = running(session.layout)
        if here and here.pid == process.pid and not_ready(here.url) is None:
            return here
        if process.poll() is not None:
            said = log_file.read_text(errors="replace").rpartition("llmos: ")[2].strip()
            raise UpError(said or f"`llmos up` ended with exit code {process.returncode}; see {log_file}")
        if time.monotonic() > deadline:
            raise UpError(f"not up in time; see {log_file}")
        time.sleep(0.05)


def _tend(supervisor: Supervisor, asked: StopSignals, table: bool) -> None:
    if table:
        with Live(_processes(supervisor), console=console, refresh_per_second=2, transient=True) as live:
            while not asked.came:
                time.sleep(TEND_EVERY_S)
                supervisor.tend()
                live.update(_processes(supervisor))
        return
    while not asked.came:
        time.sleep(TEND_EVERY_S)
        supervisor.tend(_step)


def _processes(supervisor: Supervisor) -> Table:
    grid = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("PROCESS", "STATE", "PID", "RESTARTS", "LOG"):
        grid.add_column(column, no_wrap=column == "PROCESS")
    for name, child in supervisor.children.items():
        state = coloured("running") if child.running else coloured("failed")
        grid.add_row(name, state, str(child.pid or ""), str(child.restarts), str(child.log_file))
    return grid


def _step(sentence: str) -> None:
    with suppress(OSError):  # the terminal may be gone, and the rest is still to be stopped
        errors.print(f"· {sentence}", style="dim", soft_wrap=True)


def down(
    context: typer.Context,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait for an orderly stop.")] = STOP_S,
    as_json: AsJson = False,
) -> None:
    """Stop LLM OS on this machine, and what a killed one left. Running jobs save a checkpoint and go on at the next
    `up`."""
    session = session_of(context)
    with errors.status("stopping"):
        done = stop_running(session, timeout)

    def person() -> None:
        if done.leftovers:
            say(f"ended what a killed start had left: {', '.join(done.leftovers)}")
        say("stopped" if done.supervisor else f"nothing runs on {session.home}")

    show({"stopped": done.supervisor, "leftovers": done.leftovers}, as_json, person)


@dataclass(frozen=True)
class Stopped:
    """What has been stopped: a supervisor with all its processes, and processes whose supervisor had been killed."""

    supervisor: bool = False
    leftovers: list[str] = field(default_factory=list)


def stop_running(session: Session, timeout_s: float = STOP_S) -> Stopped:
    """Stop what runs on the session's home, and return when its processes have ended. Raises UpError when they do not
    in time."""
    layout, stopped = session.layout, False
    if not layout.lock_file.exists():
        return Stopped()
    deadline = time.monotonic() + max(timeout_s, LOCK_PATIENCE_S)
    while True:
        with layout.lock_file.open("r+") as lock:
            if lock_home(lock):  # so that nobody starts now what would be taken for a leftover
                lock.truncate(0)  # what a killed supervisor said of itself is true no more
                return Stopped(stopped, end_leftovers(layout.processes_file))
        if here := running(layout):
            _stop(here, layout, timeout_s)
            stopped, deadline = True, time.monotonic() + LOCK_PATIENCE_S
        elif time.monotonic() > deadline:
            raise UpError(f"{layout.home} is held by a process that does not say who it is; see {layout.logs}")
        else:
            time.sleep(LOOK_EVERY_S)


def _stop(here: Running, layout: Layout, timeout_s: float) -> None:
    birth = birth_of(here.pid)
    if birth is None:
        return  # it has just ended by itself
    supervisor = Life(here.pid, birth)
    supervisor.send(signal.SIGTERM)
    if await_end([supervisor], timeout_s):
        raise UpError(f"pid {here.pid} has not stopped after {timeout_s:g} s; see {layout.logs}")
