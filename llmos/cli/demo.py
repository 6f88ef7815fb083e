"""`llmos demo`."""

from __future__ import annotations

import os
import signal
import socket
from dataclasses import replace
from typing import Annotated

import typer

from llmos.cli.output import AsJson, console, errors, listing, print_json
from llmos.cli.power import start_detached, stop_running
from llmos.cli.session import session_of
from llmos.embedded.running import running


def register(app: typer.Typer) -> None:
    app.command()(demo)


def demo(
    context: typer.Context,
    url: Annotated[str | None, typer.Option(help="Play it on the system there (default: LLMOS_URL), not here.")] = None,
    key: Annotated[str | None, typer.Option(help="The key for it; by default the one in ./.env.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the system running afterwards.")] = False,
    as_json: AsJson = False,
) -> None:
    """Pretrain, fine-tune, register, deploy and chat: the whole system in about ten minutes, no GPU needed."""
    from llmos.demo.play import play, what_next  # the demo's imports would slow every other command

    session = session_of(context)
    url = url or session.url or os.environ.get("LLMOS_URL") or None
    session = replace(session, url=url, key=key or session.key)
    stage = errors if as_json else console  # JSON comes alone on stdout
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # as Ctrl-C: what was started is taken down
    started = session.url is None and running(session.layout) is None
    if started:
        stage.print("starting LLM OS", style="dim")
        start_detached(session, "127.0.0.1", _free_port())
    try:
        with session.client() as client:
            stage.print(f"LLM OS at {client.connection.url}")
            facts = play(client, stage, str(session.home) if session.url is None else client.connection.url)
    finally:
        if started and not keep:
            stage.print("stopping LLM OS", style="dim")
            stop_running(session)
    if as_json:
        print_json(listing([{"name": name.strip(), "value": value} for name, value in facts]))
    else:
        what_next(console, kept=keep or not started)


def _free_port(wished: int = 8000) -> int:
    """The wished port if it is free, else any."""
    for port in (wished, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError("no free port on 127.0.0.1")
