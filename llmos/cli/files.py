"""`llmos files`: data for training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import wrap_file

from llmos.cli.output import AsJson, ago, console, show, size, table
from llmos.cli.session import session_of

app = typer.Typer(help="Uploaded files: the data of training jobs.", no_args_is_help=True)

FileId = Annotated[str, typer.Argument(metavar="FILE_ID", help="As `llmos files list` shows it.")]


@app.command()
def upload(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The file.")],
    purpose: Annotated[str, typer.Option(help="fine-tune, batch, user_data …")] = "fine-tune",
    as_json: AsJson = False,
) -> None:
    """Upload a file; its id is what jobs take."""
    total = path.stat().st_size
    with (
        session_of(context).client() as client,
        client.openai() as openai,
        path.open("rb") as raw,
        wrap_file(raw, total, description=path.name, console=console, disable=as_json, transient=True) as stream,
    ):
        file = openai.files.create(file=(path.name, stream), purpose=purpose).model_dump()  # type: ignore[arg-type]
    show(file, as_json, lambda: console.print(f"{file['id']}  {file['filename']}  {size(file['bytes'])}"))


@app.command("list")
def list_(context: typer.Context, as_json: AsJson = False) -> None:
    """The files, newest first."""
    with session_of(context).client() as client, client.openai() as openai:
        items = [file.model_dump() for file in openai.files.list(limit=100).data]
    rows = [(f["id"], f["filename"], size(f["bytes"]), f["purpose"], f["status"], ago(f["created_at"])) for f in items]
    columns = ("FILE", "NAME", "SIZE", "PURPOSE", "STATUS", "UPLOADED")
    show(items, as_json, lambda: table(columns, rows, "no files: `llmos files upload PATH`"))


@app.command()
def get(context: typer.Context, file_id: FileId, as_json: AsJson = False) -> None:
    """One file's facts."""
    with session_of(context).client() as client, client.openai() as openai:
        file = openai.files.retrieve(file_id).model_dump()
    show(
        file,
        as_json,
        lambda: console.print(f"{file['id']}  {file['filename']}  {size(file['bytes'])}  {file['status']}"),
    )


@app.command()
def download(
    context: typer.Context,
    file_id: FileId,
    to: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to write it (default: its own name).")
    ] = None,
) -> None:
    """Get a file's content back."""
    with session_of(context).client() as client, client.openai() as openai:
        path = to or Path(Path(openai.files.retrieve(file_id).filename).name)
        openai.files.content(file_id).write_to_file(path)
    console.print(f"{path} ({size(path.stat().st_size)})", highlight=False)


@app.command()
def delete(context: typer.Context, file_id: FileId, as_json: AsJson = False) -> None:
    """Delete a file."""
    with session_of(context).client() as client, client.openai() as openai:
        result = openai.files.delete(file_id).model_dump()
    show(result, as_json, lambda: console.print(f"{file_id} is gone"))
