"""What a node should do, decided from what is wished and what runs. No I/O."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from services.trainer.endings import StopOrder
from shared.contracts.jobs import DesiredAttempt, Place, Wish
from shared.contracts.nodes import RunRef


class Seat(NamedTuple):
    """One rank of one attempt: what a run is a run of."""

    job_id: str
    attempt: int
    rank: int


@dataclass
class Decisions:
    starts: list[tuple[DesiredAttempt, Place]] = field(default_factory=list)
    stops: list[tuple[RunRef, StopOrder]] = field(default_factory=list)


def decide(
    node: str, desired: Mapping[str, DesiredAttempt], runs: Collection[RunRef], ended: Collection[Seat]
) -> Decisions:
    """Runs to start and runs to stop on `node`. `ended`: what this process has already run to its end."""
    return Decisions(
        starts=list(_starts(node, desired, runs, ended)),
        stops=[(run, order) for run in runs if (order := stop_order(node, desired.get(run.job_id), run))],
    )


def stop_order(node: str, desired: DesiredAttempt | None, run: RunRef) -> StopOrder | None:
    """Why `run` must stop, if it must: another took its seat, its attempt is over, or a person wished it."""
    if desired is None:
        return StopOrder(Wish.none, "the job wants nothing to run any more")
    if desired.attempt != run.attempt:
        return StopOrder(Wish.none, f"attempt {desired.attempt} is the current one")
    if not any(place.node == node and place.rank == run.rank for place in desired.places):
        return StopOrder(Wish.none, "its place is on another node")
    if desired.accepted.get(run.rank, run.run_id) != run.run_id:
        return StopOrder(Wish.none, "another run was accepted in its place")
    if desired.wish is not Wish.run:
        return StopOrder(desired.wish, f"the wish is {desired.wish}")
    return None


def _starts(
    node: str, desired: Mapping[str, DesiredAttempt], runs: Collection[RunRef], ended: Collection[Seat]
) -> Iterator[tuple[DesiredAttempt, Place]]:
    busy = {(run.job_id, run.rank) for run in runs}  # an older attempt must be gone before its successor starts
    for attempt in desired.values():
        for place in attempt.places:
            seat = Seat(attempt.job_id, attempt.attempt, place.rank)
            if (
                place.node == node
                and attempt.wish is Wish.run
                and place.rank not in attempt.accepted
                and (attempt.job_id, place.rank) not in busy
                and seat not in ended
            ):
                yield attempt, place
