"""Following a job or a deployment: one bar with the newest figures on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.text import Text

from llmos.calls import ENDED, Json
from llmos.cli.output import duration, errors
from llmos.client import LLMOS
from llmos.errors import APIError

SHOWN = ("loss", "eval_loss", "tokens_per_second")
LOOK_EVERY_S = 0.25
RETRY_S = 2.0
PULSE_S = 15.0
UNAVAILABLE = 503


class Pulse:
    """Where no bar can move (a pipe, a log file): a line now and then, so that nobody takes patience for a hang."""

    def __init__(self, on: Console, quiet: bool = False) -> None:
        self._on = None if quiet or on.is_terminal else on
        self._last = time.monotonic()

    def tell(self, sentence: str) -> None:
        """Says it, when nothing has been said for a while."""
        if self._on and time.monotonic() - self._last >= PULSE_S:
            self._last = time.monotonic()
            self._on.print(Text(sentence, "dim"), soft_wrap=True)


@contextmanager
def waiting(sentence: str, on: Console, quiet: bool = False) -> Iterator[Callable[[str], None]]:
    """A spinner; gives a function that says what is waited for now."""
    pulse = Pulse(on, quiet)
    if quiet or not on.is_terminal:
        yield pulse.tell
        return
    with on.status(Text(sentence)) as line:
        yield lambda now: line.update(Text(now))


def watch_job(client: LLMOS, job_id: str, quiet: bool = False, title: str = "", on: Console = errors) -> Json:
    """Show the job's progress until it ends; returns it as it ended. What the gateway cannot tell now, it can later."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"))
    pulse = Pulse(on, quiet)
    with Progress(*columns, console=on, transient=True, disable=quiet or not on.is_terminal) as bar:
        task = bar.add_task(escape(title) or job_id, total=100, figures="")
        while True:
            try:
                job = client.get_job(job_id)
            except APIError as error:
                if error.status != UNAVAILABLE:
                    raise
                bar.update(task, description=f"{escape(title or job_id)} [dim]waits: {escape(str(error))}[/dim]")
                pulse.tell(f"{title or job_id}: waits: {error}")
                time.sleep(RETRY_S)
                continue
            if job["status"] in ENDED:
                return job
            progress, name, figures = job["progress"] or {}, title or f"{job['type']} {job_id}", _figures(job)
            described = f"{escape(name)} [dim]{job['status']}[/dim]"
            bar.update(task, description=described, completed=progress.get("percent") or 0, figures=escape(figures))
            pulse.tell(f"{name}: {job['status']}: {figures}")
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
