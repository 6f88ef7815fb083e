"""What the acts share: the client, the terminal, and the figures for the last table."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from llmos.calls import Json
from llmos.cli.deployments import wait_ready
from llmos.cli.watching import watch_job
from llmos.client import LLMOS
from llmos.errors import LLMOSError

if TYPE_CHECKING:
    import openai
    from openai.types import FilePurpose


READY_S = 600


@dataclass
class Stage:
    """Where the acts play."""

    client: LLMOS
    openai: openai.OpenAI
    console: Console
    facts: list[tuple[str, str]] = field(default_factory=list)
    """What the last table shows, in order."""

    def act(self, title: str) -> None:
        self.console.print()
        self.console.print(Rule(Text(title, "bold"), align="left"))

    def say(self, sentence: str, style: str | None = None) -> None:
        self.console.print(sentence, style=style)

    def note(self, name: str, value: str) -> None:
        self.facts.append((name, value))

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        begun = time.monotonic()
        yield
        self.say(f"{what}: {time.monotonic() - begun:.0f} s", "dim")

    def upload(self, name: str, data: bytes | Path, purpose: FilePurpose = "fine-tune") -> str:
        """The id of a new file with these bytes, once jobs can take it."""
        file = self.openai.files.create(file=(name, data), purpose=purpose)
        self.openai.files.wait_for_processing(file.id, poll_interval=0.1)
        return file.id

    def finish(self, job_id: str, title: str) -> Json:
        """Watch a job to its end. Raises LLMOSError when it does not succeed."""
        with self.timed(title):
            job = watch_job(self.client, job_id, title=title, on=self.console)
        if job["status"] != "succeeded":
            why = job["failure"]["message"] if job["failure"] else job["reason"]
            raise LLMOSError(f"{title}: {job['status']}: {why}")
        return job

    def serve(self, ref: str, name: str, **options: object) -> None:
        """Deploy and wait until it answers. Raises LLMOSError when it fails."""
        with self.timed(f"{name} is ready"):
            self.client.deploy(ref, name=name, **options)  # type: ignore[arg-type]
            state = wait_ready(self.client, name, timeout_s=READY_S, on=self.console)
        if state["status"] != "ready":
            reasons = [item["reason"] for item in state["replica_statuses"] if item["reason"]]
            raise LLMOSError(f"{name} cannot be served: {'; '.join(reasons) or state['problem']}")


def ref_of(job: Json) -> str:
    """`name@version` of the first thing that a job published."""
    return str(job["outputs"][0]["ref"])
