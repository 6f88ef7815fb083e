"""`llmos models`: what the registry keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.text import Text

from llmos.cli.files import send_file
from llmos.cli.jobs import _end
from llmos.cli.output import AsJson, ago, listing, more, say, show, size, table
from llmos.cli.paging import After, Limit, all_pages, first
from llmos.cli.session import session_of
from llmos.cli.target import Force, Output, show_written, target
from llmos.cli.transfer import transfer_bar
from llmos.cli.watching import watch_job

app = typer.Typer(help="Models, adapters and everything else in the registry.", no_args_is_help=True)

Ref = Annotated[str, typer.Argument(metavar="REF", help="NAME, NAME@VERSION or NAME@ALIAS.")]


@app.command("list")
def list_(
    context: typer.Context,
    kind: Annotated[str | None, typer.Option(help="model, adapter, dataset, file, checkpoint or report.")] = None,
    after: After = None,
    limit: Limit = None,
    as_json: AsJson = False,
) -> None:
    """The artifacts by name; by default models and adapters."""
    with session_of(context).client() as client:
        kinds = (kind,) if kind else ("model", "adapter")
        pages = all_pages(lambda last: client.list_artifacts(kind=kinds, after=last, limit=100), after)
        items, has_more = first(limit, pages)

    def person() -> None:
        rows = [
            (
                item["name"],
                item["kind"],
                item["latest"],
                size(item["size_bytes"]),
                _aliases(item),
                ago(item["created_at"]),
            )
            for item in items
        ]
        table(("NAME", "KIND", "LATEST", "SIZE", "ALIASES", "CREATED"), rows, "none yet: `llmos models import PATH`")
        more(items, has_more)

    show(listing(items, has_more), as_json, person)


@app.command()
def get(context: typer.Context, ref: Ref, as_json: AsJson = False) -> None:
    """One version (NAME alone: the latest): its files, what is known of it, and where it came from."""
    with session_of(context).client() as client:
        item = client.get_artifact(ref if "@" in ref else f"{ref}@latest")

    def person() -> None:
        say(Text(f"{item['name']}@{item['version']}", "bold"), item["kind"], size(item["size_bytes"]))
        if item["parents"]:
            say(f"made from {', '.join(item['parents'])}")
        for name, value in item["metadata"].items():
            say(f"  {name}: {value if isinstance(value, str) else orjson.dumps(value).decode()}")
        rows = [(file["path"], size(file["size_bytes"]), file["sha256"][:12]) for file in item["files"]]
        table(("FILE", "SIZE", "SHA256"), rows, "no files")

    show(item, as_json, person)


@app.command()
def download(
    context: typer.Context,
    ref: Ref,
    output: Output = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """A version as one .tar."""
    to = target(output, f"{ref.replace('@', '-')}.tar", force)
    written = 0

    def count(more_bytes: int) -> None:
        nonlocal written
        written += more_bytes
        advance(more_bytes)

    with session_of(context).client() as client:
        total = client.get_artifact(ref)["size_bytes"]
        with transfer_bar(ref, total, quiet=as_json) as advance:
            client.download(ref, to, count)
    show_written(to, written, as_json)


@app.command()
def alias(
    context: typer.Context,
    ref: Annotated[str, typer.Argument(metavar="NAME@VERSION", help="The version that it shall mean.")],
    alias: Annotated[str, typer.Argument(help="For example production.")],
    remove: Annotated[bool, typer.Option("--remove", help="Take the alias away.")] = False,
    as_json: AsJson = False,
) -> None:
    """Let an alias point at a version: `llmos models alias my-model@3 production`."""
    name, _, version = ref.partition("@")
    if not remove and not version.isdigit():
        raise typer.BadParameter(f"{ref!r} names no version: write {name}@3, say", param_hint="NAME@VERSION")
    with session_of(context).client() as client:
        item = client.delete_alias(name, alias) if remove else client.set_alias(name, alias, int(version))
    show(item, as_json, lambda: say(f"{name}@{alias} is {'gone' if remove else 'version ' + version}"))


@app.command()
def delete(
    context: typer.Context,
    ref: Ref,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete one version (NAME@VERSION) or all of them (NAME)."""
    if not yes:
        typer.confirm(f"Delete {ref}{'' if '@' in ref else ' and all its versions'}?", abort=True)
    with session_of(context).client() as client:
        result = client.delete_artifact(ref)
    show(result, as_json, lambda: say(f"{ref} is gone"))


@app.command("import")
def import_(
    context: typer.Context,
    source: Annotated[str, typer.Argument(metavar="PATH|HUB_ID|FILE.gguf", help="What to bring in.")],
    name: Annotated[str | None, typer.Option(help="Its name in the registry (default: from the source).")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")] = None,
    upload: Annotated[
        bool,
        typer.Option("--upload", help="Send the .gguf file from here; else the trainer reads PATH on its machine."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Bring a model folder, a hub model or a GGUF file in as safetensors."""
    path = Path(source).expanduser()
    output = name or default_name(source)
    if upload and not path.is_file():
        raise typer.BadParameter(f"{source} is no file here", param_hint="--upload")
    from_there = str(path.absolute()) if path.exists() else source
    params = {"source": None if upload else from_there, "revision": revision, "dtype": dtype}
    given = {key: value for key, value in params.items() if value is not None}
    with session_of(context).client() as client:
        inputs = {"file": send_file(client, path, quiet=as_json)} if upload else None
        job = client.submit_job("import", params=given, inputs=inputs, output=output)
        _end(watch_job(client, job["id"], quiet=as_json, title=f"import {output}"), as_json)


def default_name(source: str) -> str:
    """`Org/Model-7B` → `model-7b`; `/models/x.Q4_1.gguf` → `x.q4_1`."""
    last = source.rstrip("/").rsplit("/", 1)[-1].lower().removesuffix(".gguf")
    return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in last).strip("._-") or "model"


def _aliases(item: dict[str, object]) -> str:
    aliases = item.get("aliases") or {}
    assert isinstance(aliases, dict)
    return ", ".join(f"{name}→{version}" for name, version in aliases.items() if name != "latest")
