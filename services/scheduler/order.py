"""Who is next: priority, then fair share between tenants, then age; and nothing starves. Pure.

Jobs stand in lines of their like. A line that has not been served for long gains priority, so that a stream of more
important work cannot keep it waiting for ever; being served takes the gain away again, so that many old jobs of one
tenant do not outrank another's first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from services.scheduler.domain import Job
from shared.contracts.recipes import RECIPES

AGEING_S = 300.0
"""A line gains one point of priority for every so many seconds without service."""
HOLD_BACK_S = 300.0
"""A job whose line has waited so long keeps nodes free for itself: small jobs must not slip past it for ever."""


class Line(NamedTuple):
    """Queued jobs that are alike: same tenant, priority and resources. The oldest is its head."""

    tenant: str
    priority: int
    shape: str


def line_of(job: Job) -> Line:
    """Jobs of one line fit or do not fit alike."""
    wants = job.spec.resources
    asked = wants.devices, repr(wants.cpus), wants.memory_bytes, wants.nodes, wants.ranks_per_node
    return Line(job.tenant, job.spec.priority, "/".join(map(str, (int(wants_device(job)), *asked))))


def wants_device(job: Job) -> bool:
    """Whether it takes an accelerator where there is one and nothing else was asked. Unknown types do: they train."""
    recipe = RECIPES.get(job.spec.type)
    return recipe is None or recipe.trains


@dataclass
class Waiting:
    """A line and its next job."""

    line: Line
    rest: Iterator[Job]
    head: Job
    waited_s: float

    def step(self) -> bool:
        """On to the next job; False when there is none."""
        following = next(self.rest, None)
        if following is None:
            return False
        self.head, self.waited_s = following, 0.0
        return True


def waited_s(line: Line, head: Job, served: Mapping[Line, datetime], leading_since: datetime, now: datetime) -> float:
    """How long the line has gone without service, as far as this leader has seen."""
    return (now - max(head.queued_at, served.get(line, leading_since))).total_seconds()


def next_in_turn(waiting: list[Waiting], running: Mapping[str, int]) -> Waiting:
    """The line whose head starts first. `running` counts the tenants' active jobs."""
    return min(
        waiting,
        key=lambda each: (
            -(each.line.priority + int(each.waited_s // AGEING_S)),
            running.get(each.line.tenant, 0),
            each.head.queued_at,
            each.head.id,
        ),
    )
