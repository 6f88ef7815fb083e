"""Following a job on the terminal: one bar, the newest figures, the sentences in between."""

from __future__ import annotations

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from llmos.calls import Json
from llmos.cli.output import console, duration
from llmos.client import LLMOS

SHOWN = ("loss", "eval_loss", "tokens_per_second")


def watch_job(client: LLMOS, job_id: str, quiet: bool = False, title: str = "") -> Json:
    """Show the job's progress until it ends; returns it as it ended."""
    job = client.get_job(job_id)
    name = title or f"{job['type']} {job_id}"
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"))
    with Progress(*columns, console=console, transient=True, disable=quiet) as bar:
        task = bar.add_task(f"{name} {job['status']}", total=100, figures="")
        for event in client.follow_job(job_id):
            data = event.get("data") or {}
            if event["type"] == "progress":
                bar.update(task, completed=data.get("percent") or 0, figures=_figures(data))
            elif event["type"] == "status":
                bar.update(task, description=f"{name} {data['after']}")
    return client.get_job(job_id)


def _figures(data: Json) -> str:
    metrics = data.get("metrics") or {}
    parts = [f"step {data['step']}" + (f"/{data['total_steps']}" if data.get("total_steps") else "")]
    parts += [f"{key.replace('_', ' ')} {metrics[key]:.4g}" for key in SHOWN if key in metrics]
    if data.get("eta_s") is not None:
        parts.append(f"{duration(data['eta_s'])} left")
    return " · ".join(parts)
