"""`llmos status`, `nodes`, `config`: what there is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import typer

from llmos.calls import Json
from llmos.cli.deployments import status_of
from llmos.cli.jobs import reason_of
from llmos.cli.output import AsJson, coloured, duration, listing, say, say_error, show, size, table
from llmos.cli.session import session_of
from shared.settings import PREFIX, Settings, SettingsError, load_settings


def register(app: typer.Typer) -> None:
    for command in (status, nodes, config):
        app.command()(command)


def status(context: typer.Context, as_json: AsJson = False) -> None:
    """What runs: jobs, deployments, nodes; and what is missing."""
    session = session_of(context)
    with session.client() as client:
        missing = client.missing()
        if not as_json:  # at once: it may be the reason why the rest is not answered
            _head(client.connection.url, missing)
        value = {
            "url": client.connection.url,
            "home": str(session.home),
            "missing": missing,
            "jobs": client.list_jobs(limit=10)["data"],
            "deployments": client.list_deployments()["data"],
            "nodes": client.list_nodes()["data"],
        }

    def person() -> None:
        unknown = "not known yet: the gateway is catching up" if "view" in missing else ""
        rows = [(job["id"], job["type"], coloured(job["status"]), reason_of(job)) for job in value["jobs"]]
        table(("JOB", "TYPE", "STATUS", ""), rows, unknown or "no jobs yet: `llmos jobs submit probe`")
        say()
        served = [(it["name"], it["model"], coloured(status_of(it)), it["problem"]) for it in value["deployments"]]
        table(("DEPLOYMENT", "MODEL", "STATUS", ""), served, unknown or "no deployments yet: `llmos deploy MODEL`")
        say()
        _node_table(value["nodes"], unknown or "no nodes")

    show(value, as_json, person)


def _head(url: str, missing: Mapping[str, str]) -> None:
    say(f"LLM OS at {url}", style="bold")
    for name, reason in missing.items():
        say(f"missing: {name}: {reason}", style="red")
    say()


def nodes(context: typer.Context, as_json: AsJson = False) -> None:
    """The machines: what they have, what runs there."""
    with session_of(context).client() as client:
        found = client.list_nodes()
    show(found, as_json, lambda: _node_table(found["data"]))


def _node_table(items: list[Json], none: str = "no nodes") -> None:
    rows = []
    for item in items:
        for role in item["roles"]:
            capacity = role["capacity"]
            rows.append(
                (
                    item["name"],
                    role["role"],
                    coloured("running" if role["alive"] else "silent"),
                    f"{capacity['cpus']:g}",
                    size(capacity["memory_bytes"]),
                    len(capacity["devices"]) or "none",
                    len(role["runs"]) + len(role["replicas"]) or "nothing",
                    f"{duration(role['silent_s'])} ago",
                )
            )
    table(("NODE", "ROLE", "STATE", "CPUS", "MEMORY", "DEVICES", "BUSY WITH", "HEARD OF"), rows, none)


def config(context: typer.Context, as_json: AsJson = False) -> None:
    """Every setting: its name, what it is now, what it means. `llmos up` fills in the addresses of what it starts."""
    home, code = session_of(context).home, 0
    try:
        now = load_settings(home=home)
    except SettingsError as error:
        say_error(f"{error}; these are the settings with their defaults")
        now, code = Settings.model_construct(home=home), 2
    rows = [
        {"name": PREFIX + name.upper(), "value": _shown(name, getattr(now, name)), "meaning": field.description or ""}
        for name, field in Settings.model_fields.items()
    ]
    show(listing(rows), as_json, lambda: table(("SETTING", "VALUE", ""), [tuple(row.values()) for row in rows], "none"))
    raise typer.Exit(code)


def _shown(name: str, value: object) -> object:
    """A setting's value without what is secret in it."""
    if "key" in name and value:
        return "***"
    if isinstance(value, str):
        return re.sub(r"://([^:/@]*):[^@/]*@", r"://\1:***@", value)
    return str(value) if isinstance(value, Path) else value
