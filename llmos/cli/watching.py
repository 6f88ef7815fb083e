"""Following a job on the terminal: one bar with the newest figures."""

from __future__ import annotations

import time

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from llmos.calls import ENDED, Json
from llmos.cli.output import console, duration
from llmos.client import LLMOS

SHOWN = ("loss", "eval_loss", "tokens_per_second")
LOOK_EVERY_S = 0.25


def watch_job(client: LLMOS, job_id: str, quiet: bool = False, title: str = "", on: Console = console) -> Json:
    """Show the job's progress until it ends; returns it as it ended."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"))
    with Progress(*columns, console=on, transient=True, disable=quiet) as bar:
        task = bar.add_task(escape(title) or job_id, total=100, figures="")
        while True:
            job = client.get_job(job_id)
            if job["status"] in ENDED:
                return job
            progress = job["progress"] or {}
            name = f"{escape(title) or job['type'] + ' ' + job_id} [dim]{job['status']}[/dim]"
            bar.update(task, description=name, completed=progress.get("percent") or 0, figures=escape(_figures(job)))
            time.sleep(LOOK_EVERY_S)


def _figures(job: Json) -> str:
    if job["queue_position"]:
        return f"number {job['queue_position']} in the queue"
    if job["status"] != "running" or not job["progress"]:
        return str(job["reason"])
    progress = job["progress"]
    metrics = progress["metrics"] or {}
    parts = [f"step {progress['step']}" + (f"/{progress['total_steps']}" if progress["total_steps"] else "")]
    parts += [f"{name.replace('_', ' ')} {metrics[name]:.4g}" for name in SHOWN if name in metrics]
    if progress["eta_s"] is not None:
        parts.append(f"{duration(progress['eta_s'])} left")
    return " · ".join(parts)
