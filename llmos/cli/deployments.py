"""`llmos deploy`, `scale`, `undeploy`: serving."""

from __future__ import annotations

import time
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.text import Text

from llmos.calls import Json
from llmos.cli.output import AsJson, coloured, errors, say, say_error, show, table
from llmos.cli.session import session_of
from llmos.cli.watching import waiting
from llmos.client import LLMOS
from llmos.errors import LLMOSError

READY_S = 1800.0
"""Enough to pull some ten GB over a usual line and to load them twice."""


def register(app: typer.Typer) -> None:
    for command in (deploy, scale, undeploy):
        app.command()(command)


def deploy(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="NAME, NAME@VERSION or NAME@ALIAS of a registered model.")],
    name: Annotated[str | None, typer.Option(help="The deployment's name (default: the model's).")] = None,
    replicas: Annotated[int | None, typer.Option(min=0, help="How many (default: 1).")] = None,
    adapter: Annotated[list[str] | None, typer.Option(help="An adapter to load; repeatable.")] = None,
    auto_adapters: Annotated[
        bool | None, typer.Option(help="Load the registered adapters of this model version by itself (default: yes).")
    ] = None,
    max_loras: Annotated[int | None, typer.Option(min=0, help="Room for so many adapters (default: 4).")] = None,
    device: Annotated[int | None, typer.Option("--devices", min=0, help="Accelerators per replica.")] = None,
    engine_arg: Annotated[
        list[str] | None,
        typer.Option("--engine-arg", "-e", metavar="NAME=VALUE", help="For vLLM: `-e max_model_len=2048`."),
    ] = None,
    wait: Annotated[bool, typer.Option(help="Wait until it answers.")] = True,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait.")] = READY_S,
    as_json: AsJson = False,
) -> None:
    """Serve a model: afterwards the OpenAI API answers for it. Again with the same name changes it."""
    arguments = dict(_pair(text) for text in engine_arg or [])
    with session_of(context).client() as client:
        made = client.deploy(
            model,
            name=name,
            replicas=replicas,
            adapters=adapter,
            auto_adapters=auto_adapters,
            max_loras=max_loras,
            engine_args=arguments or None,
            resources=None if device is None else {"devices": device},
        )
        if wait:
            made = wait_ready(client, made["name"], quiet=as_json, timeout_s=timeout)
    show(made, as_json, lambda: describe(made))
    if wait and made["status"] == "failed":
        raise typer.Exit(1)


def scale(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The deployment.")],
    replicas: Annotated[int, typer.Argument(min=0, help="How many replicas it shall have.")],
    as_json: AsJson = False,
) -> None:
    """Change the number of replicas."""
    with session_of(context).client() as client:
        changed = client.scale(name, replicas)
    show(changed, as_json, lambda: describe(changed))


def undeploy(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The deployment.")],
    as_json: AsJson = False,
) -> None:
    """Stop serving. Running answers are finished; the model stays registered."""
    with session_of(context).client() as client:
        result = client.undeploy(name)
    show(result, as_json, lambda: say(f"{name} is being taken down"))


def wait_ready(client: LLMOS, name: str, quiet: bool = False, timeout_s: float = READY_S, on: Console = errors) -> Json:
    """The deployment once all its replicas are ready, or it has failed. Raises LLMOSError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    with waiting(name, on, quiet) as tell:
        while True:
            state = client.get_deployment(name)
            if state["status"] in ("ready", "failed", "stopped"):
                return state
            if time.monotonic() > deadline:
                raise LLMOSError(
                    f"{name} is not ready after {timeout_s:g} s: {_stage(state)}. It goes on without this command: "
                    "look with `llmos status`, wait longer with --timeout, or take it down with `llmos undeploy`."
                )
            tell(f"{name}: {_stage(state)}")
            time.sleep(0.2)


def _stage(state: Json) -> str:
    stages = []
    for replica in state["replica_statuses"]:
        percent = f" {replica['percent']:.0f}%" if replica.get("percent") is not None else ""
        reason = f" ({replica['reason']})" if replica["reason"] else ""
        stages.append(f"{replica['state']}{percent}{reason}")
    return ", ".join(stages) or state["problem"] or str(state["status"])


def status_of(state: Json) -> str:
    """Its status; `stopping` while replicas that nobody wants any more finish their answers."""
    return "stopping" if state["status"] == "stopped" and state["replica_statuses"] else str(state["status"])


def describe(state: Json) -> None:
    """A deployment for people."""
    say(Text(state["name"], "bold"), "serves", f"{state['model']}:", coloured(status_of(state)))
    if state["problem"]:
        say_error(state["problem"])
    rows = [
        (item["replica_id"], item["node"], item["state"], ", ".join(item["adapters"]), item["reason"])
        for item in state["replica_statuses"]
    ]
    if rows:
        table(("REPLICA", "NODE", "STATE", "ADAPTERS", ""), rows, "")


def _pair(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise typer.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--engine-arg")
    try:
        return name, orjson.loads(value)
    except orjson.JSONDecodeError:
        return name, value
