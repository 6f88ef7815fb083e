"""`llmos admin`: what is done for a whole system, by whoever runs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import typer
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from llmos.cli import backup
from llmos.cli.output import AsJson, say, show
from shared import bus, requests, store
from shared.bus.port import BusUnavailable
from shared.requests.port import RequestsUnavailable
from shared.settings import load_settings
from shared.store.port import StoreUnavailable
from shared.telemetry import setup_telemetry

app = typer.Typer(help="Set a cluster up; save a whole system, and restore it.", no_args_is_help=True)

AGAIN_S = 1.0


@app.callback()
def admin() -> None:
    """Set a cluster up; save a whole system, and restore it."""


@app.command()
def init(
    wait: Annotated[float, typer.Option(help="Seconds to wait for servers that do not answer yet.", min=0)] = 60,
    as_json: AsJson = False,
) -> None:
    """Make what the servers at LLMOS_BUS_URL, LLMOS_REQUESTS_URL and LLMOS_STORE_URL lack.

    Topics, the bucket and its rules. What is there already stays as it is.
    """
    settings = load_settings()
    setup_telemetry(settings, "init")
    made = {
        "bus": _insist(wait, lambda: bus.prepare(settings.bus_url)),
        "requests": _insist(wait, lambda: requests.prepare(settings.effective_requests_url)),
        "store": _insist(wait, lambda: store.prepare(settings)),
    }

    def person() -> None:
        for name, things in made.items():
            say(f"{name}: {f'made {len(things)}: ' + ', '.join(things) if things else 'nothing to make'}")

    show({name: {"made": list(things)} for name, things in made.items()}, as_json, person)


def _insist(wait_s: float, prepare: Callable[[], Sequence[str]]) -> Sequence[str]:
    """Again until the server answers. Raises what it says of a server that takes too long."""
    away = retry_if_exception_type((BusUnavailable, RequestsUnavailable, StoreUnavailable))
    retrying = Retrying(retry=away, stop=stop_after_delay(wait_s), wait=wait_fixed(AGAIN_S), reraise=True)
    return retrying(prepare)


backup.register(app)
