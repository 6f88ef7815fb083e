"""`llmos files`: data for training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import wrap_file

from llmos.cli.output import AsJson, ago, errors, listing, more, say, show, size, table
from llmos.cli.paging import After, Limit, first
from llmos.cli.session import session_of
from llmos.cli.target import Force, Output, show_written, target
from llmos.cli.transfer import transfer_bar
from llmos.client import LLMOS
from llmos.files import sink

if TYPE_CHECKING:
    import openai

app = typer.Typer(help="Uploaded files: the data of training jobs.", no_args_is_help=True)

PAGE = 1000

FileId = Annotated[str, typer.Argument(metavar="FILE_ID", help="As `llmos files list` shows it.")]


@app.command()
def upload(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The file.")],
    purpose: Annotated[str, typer.Option(help="fine-tune, batch, user_data …")] = "fine-tune",
    as_json: AsJson = False,
) -> None:
    """Upload a file; its id is what jobs take."""
    with session_of(context).client() as client, client.openai() as api:
        file = upload_file(api, path, purpose, quiet=as_json)
    show(file, as_json, lambda: say(f"{file['id']}  {file['filename']}  {size(file['bytes'])}"))


def upload_file(api: openai.OpenAI, path: Path, purpose: str = "fine-tune", quiet: bool = False) -> dict[str, Any]:
    """Upload with a progress bar; the file's object."""
    total = path.stat().st_size
    with (
        path.open("rb") as raw,
        wrap_file(
            raw,
            total,
            description=escape(path.name),
            console=errors,
            disable=quiet or not errors.is_terminal,
            transient=True,
        ) as stream,
    ):
        return api.files.create(file=(path.name, stream), purpose=purpose).model_dump()  # type: ignore[arg-type]


def send_file(client: LLMOS, path: Path, quiet: bool = False) -> str:
    """Upload what a job shall read, with a progress bar, and wait until it is registered; the file's id."""
    with client.openai() as api:
        file = upload_file(api, path, "user_data", quiet=quiet)
        api.files.wait_for_processing(file["id"], poll_interval=0.2)
    return str(file["id"])


@app.command("list")
def list_(context: typer.Context, after: After = None, limit: Limit = None, as_json: AsJson = False) -> None:
    """The files, newest first."""
    from openai import omit  # a second of start-up that other commands do not need

    with session_of(context).client() as client, client.openai() as openai:
        asked = openai.files.list(limit=PAGE, after=after or omit)  # further pages come by themselves
        items, has_more = first(limit, (file.model_dump() for file in asked))
    rows = [(f["id"], f["filename"], size(f["bytes"]), f["purpose"], f["status"], ago(f["created_at"])) for f in items]
    columns = ("FILE", "NAME", "SIZE", "PURPOSE", "STATUS", "UPLOADED")

    def person() -> None:
        table(columns, rows, "no files: `llmos files upload PATH`")
        more(items, has_more)

    show(listing(items, has_more), as_json, person)


@app.command()
def get(context: typer.Context, file_id: FileId, as_json: AsJson = False) -> None:
    """One file's facts."""
    with session_of(context).client() as client, client.openai() as openai:
        file = openai.files.retrieve(file_id).model_dump()
    show(
        file,
        as_json,
        lambda: say(f"{file['id']}  {file['filename']}  {size(file['bytes'])}  {file['status']}"),
    )


@app.command()
def download(
    context: typer.Context,
    file_id: FileId,
    output: Output = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Get a file's content back."""
    with session_of(context).client() as client, client.openai() as api:
        facts = api.files.retrieve(file_id)
        to = target(output, facts.filename, force)
        with (
            sink(to) as out,
            transfer_bar(facts.filename, facts.bytes, quiet=as_json) as advance,
            api.files.with_streaming_response.content(file_id) as content,
        ):
            for chunk in content.iter_bytes():
                out.write(chunk)
                advance(len(chunk))
    show_written(to, facts.bytes, as_json)


@app.command()
def delete(context: typer.Context, file_id: FileId, as_json: AsJson = False) -> None:
    """Delete a file."""
    with session_of(context).client() as client, client.openai() as openai:
        result = openai.files.delete(file_id).model_dump()
    show(result, as_json, lambda: say(f"{file_id} is gone"))
