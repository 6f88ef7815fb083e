"""What a node starts and stops, from what is wished and what runs."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from services.trainer.domain import Seat, decide, stop_order
from services.trainer.endings import StopOrder
from shared.contracts.jobs import DesiredAttempt, JobSpec, Place, Wish
from shared.contracts.nodes import RunRef


def desired(**changes: Any) -> DesiredAttempt:
    fields: dict[str, Any] = {"places": [Place(node="here")], "wish": Wish.run, "attempt": 1, **changes}
    return DesiredAttempt(job_id="j", version=1, spec=JobSpec(type="probe"), **fields)


def run(attempt: int = 1, rank: int = 0, run_id: str = "mine") -> RunRef:
    return RunRef(job_id="j", attempt=attempt, rank=rank, run_id=run_id)


def starts(wish: DesiredAttempt, runs: tuple[RunRef, ...] = (), ended: tuple[Seat, ...] = ()) -> list[int]:
    return [place.rank for _, place in decide("here", {"j": wish}, runs, ended).starts]


def test_every_rank_placed_here_is_started_once() -> None:
    gang = desired(places=[Place(node="here", rank=0), Place(node="there", rank=1), Place(node="here", rank=2)])
    assert starts(gang) == [0, 2]
    assert starts(gang, (run(rank=0),)) == [2]


@pytest.mark.parametrize("wish", [Wish.pause, Wish.cancel, Wish.none])
def test_only_the_wish_to_run_starts_anything(wish: Wish) -> None:
    assert starts(desired(wish=wish)) == []


def test_an_accepted_rank_is_someone_elses() -> None:
    assert starts(desired(accepted={0: "other"})) == []


def test_what_ended_here_is_not_started_again_but_its_successor_is() -> None:
    assert starts(desired(), ended=(Seat("j", 1, 0),)) == []
    assert starts(desired(attempt=2), ended=(Seat("j", 1, 0),)) == [0]


def test_a_successor_waits_until_the_older_run_is_gone() -> None:
    decisions = decide("here", {"j": desired(attempt=2)}, [run(attempt=1)], ())
    assert decisions.starts == []
    assert [order.wish for _, order in decisions.stops] == [Wish.none]


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        (desired(), None),
        (desired(accepted={0: "mine"}), None),
        (desired(accepted={1: "other"}), None),
        (desired(accepted={0: "other"}), Wish.none),
        (desired(attempt=2), Wish.none),
        (desired(places=[Place(node="there")]), Wish.none),
        (desired(places=[Place(node="here", rank=1)]), Wish.none),
        (desired(wish=Wish.pause), Wish.pause),
        (desired(wish=Wish.cancel), Wish.cancel),
        (desired(wish=Wish.none), Wish.none),
        (desired(wish=Wish.pause, accepted={0: "other"}), Wish.none),
        (None, Wish.none),
    ],
)
def test_a_run_stops_for_exactly_these_reasons(wish: DesiredAttempt | None, expected: Wish | None) -> None:
    order = stop_order("here", wish, run())
    assert (order.wish if order else None) is expected


def test_a_stronger_order_replaces_a_weaker_one_only() -> None:
    order: list[Wish | None] = [None, Wish.pause, Wish.cancel, Wish.none]
    for weaker, stronger in pairwise(order):
        assert StopOrder(stronger).outranks(StopOrder(weaker))
        assert not StopOrder(weaker).outranks(StopOrder(stronger))
    assert StopOrder(None).outranks(None)
