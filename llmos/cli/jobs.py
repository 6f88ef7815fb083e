"""`llmos jobs`: submit, list, look, watch, stop, try again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.text import Text

from llmos.calls import Json
from llmos.cli.files import upload_file
from llmos.cli.output import AsJson, ago, coloured, more, print_json, say, say_error, say_text, show, table
from llmos.cli.paging import all_pages
from llmos.cli.session import session_of
from llmos.cli.watching import watch_job
from llmos.client import LLMOS

app = typer.Typer(help="Jobs: training, imports, probes.", no_args_is_help=True)

JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")]
Pairs = Annotated[
    list[str] | None, typer.Option("--param", "-p", metavar="NAME=VALUE", help="A parameter; repeatable.")
]
Inputs = Annotated[
    list[str] | None,
    typer.Option("--input", "-i", metavar="NAME=REF", help="An input: a file id, NAME@VERSION, or a local file."),
]


@app.command()
def submit(
    context: typer.Context,
    type: Annotated[str, typer.Argument(help="probe, pretrain, sft or import.")],  # noqa: A002 - the API's word
    param: Pairs = None,
    input: Inputs = None,  # noqa: A002 - the option's name
    output: Annotated[str | None, typer.Option(help="Name of the artifact to publish.")] = None,
    name: Annotated[str | None, typer.Option(help="A name for people.")] = None,
    priority: Annotated[int | None, typer.Option(help="Higher starts first, -100 to 100.")] = None,
    params_file: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Parameters as a JSON object in a file.")
    ] = None,
    resource: Annotated[
        list[str] | None, typer.Option("--resource", "-r", metavar="NAME=NUMBER", help="`-r devices=4 -r nodes=2`")
    ] = None,
    label: Annotated[list[str] | None, typer.Option("--label", metavar="NAME=VALUE", help="To find it by.")] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Follow it to its end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Submit a job. Values are JSON where they parse as JSON, else text: `-p epochs=3 -p base_model=my/model`."""
    params = {**_from_file(params_file), **_pairs(param)}
    with session_of(context).client() as client:
        inputs = {key: _uploaded(client, value, as_json) for key, value in _texts(input).items()}
        job = client.submit_job(
            type,
            name=name,
            inputs=inputs or None,
            params=params or None,
            resources=_pairs(resource) or None,
            output=output,
            priority=priority,
            labels=_texts(label) or None,
        )
        if not watch:
            show(job, as_json, lambda: say(job["id"], coloured(job["status"])))
            return
        _end(watch_job(client, job["id"], quiet=as_json), as_json)


@app.command("list")
def list_(
    context: typer.Context,
    status: Annotated[str | None, typer.Option(help="Only those of this status.")] = None,
    type: Annotated[str | None, typer.Option(help="Only those of this type.")] = None,  # noqa: A002 - the API's word
    after: Annotated[str | None, typer.Option(help="Those after this id: the next page.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many.")] = 20,
    as_json: AsJson = False,
) -> None:
    """The jobs, newest first."""
    with session_of(context).client() as client:
        page = client.list_jobs(status=status, type=type, after=after, limit=limit)

    def person() -> None:
        rows = [
            (job["id"], job["type"], job["name"], coloured(job["status"]), ago(job["created_at"]), reason_of(job))
            for job in page["data"]
        ]
        table(("JOB", "TYPE", "NAME", "STATUS", "CREATED", ""), rows, "no jobs: `llmos jobs submit probe` makes one")
        more(page["data"], page["has_more"])

    show(page, as_json, person)


@app.command()
def get(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """One job: status, attempts, outputs, and why it failed."""
    with session_of(context).client() as client:
        job = client.get_job(job_id)
    show(job, as_json, lambda: describe(job))


@app.command()
def watch(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Follow a job to its end. Exit code 1 when it does not succeed."""
    with session_of(context).client() as client:
        _end(watch_job(client, job_id, quiet=as_json), as_json)


@app.command()
def logs(
    context: typer.Context,
    job_id: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    as_json: AsJson = False,
) -> None:
    """What the job printed."""
    with session_of(context).client() as client:
        pages = all_pages(lambda after: client.job_logs(job_id, after=after, limit=100))
        for entry in client.follow_logs(job_id) if follow else pages:
            _print_lines(entry, as_json)


@app.command()
def cancel(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Stop a job for good."""
    _steer(context, "cancel_job", job_id, "cancelled", "will be cancelled", as_json)


@app.command()
def pause(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Stop a job at a checkpoint, to go on later."""
    _steer(context, "pause_job", job_id, "paused", "will be paused", as_json)


@app.command()
def resume(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Let a paused job go on from its checkpoint."""
    _steer(context, "resume_job", job_id, "running", "will go on", as_json)


@app.command()
def retry(context: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """The same again as a new job."""
    with session_of(context).client() as client:
        job = client.retry_job(job_id)
    show(job, as_json, lambda: say(job["id"], coloured(job["status"])))


def describe(job: Json) -> None:
    """All that a person wants of a job."""
    say(Text(job["id"], "bold"), job["type"], coloured(job["status"]), reason_of(job))
    if job["queue_position"]:
        say(f"place in the queue: {job['queue_position']}")
    if percent := _percent(job):
        say(f"done: {percent}")
    if metrics := job["metrics"]:
        say("  ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
    for output in job["outputs"]:
        say("published", Text(output["ref"], "bold"), f"({output['kind']})")
    if failure := job["failure"]:
        say_error(failure["message"])
        if failure["hint"]:
            say(Text("try:", "yellow"), failure["hint"])
        for line in failure["log_tail"]:
            say(line, style="dim")
    for attempt in job["attempts"]:
        places = ", ".join(attempt["nodes"])
        say(f"attempt {attempt['attempt']} on {places}: {attempt['outcome'] or 'under way'}", style="dim")


def reason_of(job: Json) -> str:
    """Why it is in its status, where that is more than the status itself."""
    return "" if job["reason"] == job["status"] else str(job["reason"])


def _steer(context: typer.Context, action: str, job_id: str, goal: str, meaning: str, as_json: bool) -> None:
    """A wish about a job: it comes true a moment later, so that what will be is said, not what still is."""
    with session_of(context).client() as client:
        job = getattr(client, action)(job_id)
    show(job, as_json, lambda: say(job["id"], coloured(goal) if job["status"] == goal else meaning))


def _end(job: Json, as_json: bool) -> None:
    show(job, as_json, lambda: describe(job))
    if job["status"] != "succeeded":
        raise typer.Exit(1)


def _print_lines(entry: Json, as_json: bool) -> None:
    if as_json:
        print_json(entry)
        return
    for line in entry["data"]["lines"]:
        say_text(f"{line}\n")


def _percent(job: Json) -> str:
    progress = job["progress"]
    return f"{progress['percent']:.0f}%" if progress and progress["percent"] is not None else ""


def _texts(pairs: list[str] | None) -> dict[str, str]:
    texts = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"{pair!r} is not NAME=VALUE")
        texts[name] = value
    return texts


def _pairs(pairs: list[str] | None) -> dict[str, Any]:
    return {name: _value(text) for name, text in _texts(pairs).items()}


def _value(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def _from_file(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        value = orjson.loads(file.read_bytes())
    except orjson.JSONDecodeError as error:
        raise typer.BadParameter(f"{file} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise typer.BadParameter(f"{file} does not hold a JSON object")
    return value


def _uploaded(client: LLMOS, value: str, quiet: bool) -> str:
    """A local file is uploaded first; anything else is a ref already."""
    path = Path(value)
    if not path.is_file():
        return value
    with client.openai() as api:
        return str(upload_file(api, path, quiet=quiet)["id"])
