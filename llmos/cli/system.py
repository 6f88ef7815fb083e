"""`llmos up`, `down`, `status`, `nodes`, `config`: the system itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.live import Live
from rich.table import Table

from llmos.calls import Json
from llmos.cli.output import AsJson, coloured, console, duration, errors, show, size, table
from llmos.cli.session import Session, session_of
from llmos.embedded.running import running
from llmos.embedded.supervisor import Supervisor, UpError
from shared.settings import PREFIX, Settings


def register(app: typer.Typer) -> None:
    for command in (up, down, status, nodes, config):
        app.command()(command)


Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(help="Port to listen on.")]


def up(
    context: typer.Context,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Run in the background.")] = False,
) -> None:
    """Start LLM OS on this machine. Ctrl-C stops it; all jobs and models stay."""
    session = session_of(context)
    if detach:
        start_detached(session, host, port)
        console.print(f"LLM OS is up at http://{host}:{port}, its key in {session.layout.key_file}")
        return
    supervisor = Supervisor(session.layout, host, port)
    stopping = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: stopping.set())
    try:
        with interruptible(stopping):
            supervisor.start(_step)
        _tend(supervisor, stopping)
    except Interrupted:
        pass
    finally:
        # A second Ctrl-C must not leave half of them behind.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        supervisor.stop(lambda name: _step(f"stopping {name}"))


class Interrupted(Exception):
    """A signal came before the start was over."""


class interruptible:  # noqa: N801 - reads as a context
    """Within it, SIGINT and SIGTERM raise Interrupted; afterwards they set the event."""

    def __init__(self, stopping: threading.Event) -> None:
        self._stopping = stopping

    def __enter__(self) -> None:
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._raise)

    def __exit__(self, *_: object) -> None:
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, lambda *_: self._stopping.set())

    def _raise(self, *_: object) -> None:
        raise Interrupted


def start_detached(session: Session, host: str, port: int, timeout_s: float = 180) -> None:
    """Run `llmos up` in a session of its own and return once it serves. Raises UpError."""
    layout = session.layout
    if other := running(layout):
        raise UpError(f"LLM OS is already up on {layout.home} (pid {other.pid}, {other.url})")
    layout.create()
    log_file = layout.logs / "llmos.log"
    command = [sys.executable, "-m", "llmos", "--home", str(layout.home), "up", "--host", host, "--port", str(port)]
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    deadline = time.monotonic() + timeout_s
    while SERVING not in log_file.read_text(errors="replace"):
        if process.poll() is not None:
            raise UpError(log_file.read_text(errors="replace").strip() or f"llmos up ended with {process.returncode}")
        if time.monotonic() > deadline:
            raise UpError(f"not up after {timeout_s:.0f} s; see {log_file}")
        time.sleep(0.05)


SERVING = "Ctrl-C stops it"


def _tend(supervisor: Supervisor, stopping: threading.Event) -> None:
    console.print(f"[bold]LLM OS is up[/bold] at {supervisor.url}; key in {supervisor.layout.key_file}; {SERVING}.")
    if console.is_terminal:
        with Live(_processes(supervisor), console=console, refresh_per_second=2, transient=True) as live:
            while not stopping.wait(0.2):
                supervisor.tend()
                live.update(_processes(supervisor))
        return
    while not stopping.wait(0.2):
        for name in supervisor.tend():
            _step(f"{name} had ended; started again")


def _processes(supervisor: Supervisor) -> Table:
    grid = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("PROCESS", "STATE", "PID", "RESTARTS", "LOG"):
        grid.add_column(column)
    for name, child in supervisor.children.items():
        state = coloured("running") if child.running else coloured("failed")
        grid.add_row(name, state, str(child.pid or ""), str(child.restarts), str(child.log_file))
    return grid


def _step(sentence: str) -> None:
    errors.print(f"[dim]· {sentence}[/dim]", highlight=False)


def down(
    context: typer.Context,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for an orderly stop.")] = 120,
) -> None:
    """Stop LLM OS on this machine. Running jobs save a checkpoint and go on at the next `up`."""
    layout = session_of(context).layout
    here = running(layout)
    if here is None:
        console.print(f"nothing runs on {layout.home}")
        return
    os.kill(here.pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout
    with console.status("stopping"):
        while running(layout):
            if time.monotonic() > deadline:
                raise UpError(f"pid {here.pid} has not stopped after {timeout:.0f} s; see {layout.logs}")
            time.sleep(0.05)
    console.print("stopped")


def status(context: typer.Context, as_json: AsJson = False) -> None:
    """What runs: jobs, deployments, nodes."""
    session = session_of(context)
    with session.client() as client:
        value = {
            "url": client.connection.url,
            "home": str(session.home),
            "jobs": client.list_jobs(limit=10)["data"],
            "deployments": client.list_deployments()["data"],
            "nodes": client.list_nodes()["data"],
        }

    def person() -> None:
        console.print(f"[bold]LLM OS[/bold] at {value['url']}")
        console.print()
        rows = [(job["id"], job["type"], coloured(job["status"]), job.get("reason", "")) for job in value["jobs"]]
        table(("JOB", "TYPE", "STATUS", ""), rows, "no jobs yet: `llmos jobs submit probe`")
        console.print()
        served = [(item["name"], item["model"], coloured(item["status"])) for item in value["deployments"]]
        table(("DEPLOYMENT", "MODEL", "STATUS"), served, "no deployments yet: `llmos deploy MODEL`")
        console.print()
        _node_table(value["nodes"])

    show(value, as_json, person)


def nodes(context: typer.Context, as_json: AsJson = False) -> None:
    """The machines: what they have, what runs there."""
    with session_of(context).client() as client:
        found = client.list_nodes()
    show(found, as_json, lambda: _node_table(found["data"]))


def _node_table(items: list[Json]) -> None:
    rows = []
    for item in items:
        for role in item["roles"]:
            capacity = role["capacity"]
            heard = coloured("running") if role["alive"] else "[red]silent[/red]"
            rows.append(
                (
                    item["name"],
                    role["role"],
                    f"{capacity['cpus']:g}",
                    size(capacity["memory_bytes"]),
                    len(capacity["devices"]) or "none",
                    len(role["runs"]) + len(role["replicas"]) or "nothing",
                    f"{heard}, {duration(role['silent_s'])} ago",
                )
            )
    table(("NODE", "ROLE", "CPUS", "MEMORY", "DEVICES", "BUSY WITH", "HEARD OF"), rows, "no nodes")


def config(context: typer.Context, as_json: AsJson = False) -> None:
    """Every setting: its name, what it is now, what it means."""
    del context
    now = Settings()
    rows = [
        {
            "name": PREFIX + name.upper(),
            "value": "***" if "key" in name and getattr(now, name) else _plain(getattr(now, name)),
            "meaning": field.description or "",
        }
        for name, field in Settings.model_fields.items()
    ]
    show(
        rows,
        as_json,
        lambda: table(("SETTING", "VALUE", ""), [tuple(row.values()) for row in rows], "none"),
    )


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value
