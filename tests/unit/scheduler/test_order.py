"""Priority, then fair share, then age; and nothing starves."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

from services.scheduler.domain import Job
from services.scheduler.order import AGEING_S, Waiting, line_of, next_in_turn, waited_s
from shared.contracts.jobs import Resources
from tests.unit.scheduler.jobs import NOW, a_job


def waiting(*jobs: Job, waited: float = 0) -> Waiting:
    rest = iter(jobs)
    head = next(rest)
    return Waiting(line_of(head), rest, head, waited)


def order(*lines: Waiting, running: Counter[str] | None = None) -> list[str]:
    """The ids in the order in which they would start."""
    left, counts, started = list(lines), running or Counter(), []
    while left:
        turn = next_in_turn(left, counts)
        started.append(turn.head.id)
        counts[turn.line.tenant] += 1
        if not turn.step():
            left.remove(turn)
    return started


def job(job_id: str, tenant: str = "a", priority: int = 0, age_s: float = 0) -> Job:
    return a_job(job_id, tenant, priority=priority).changed(queued_at=NOW - timedelta(seconds=age_s))


def test_higher_priority_starts_first() -> None:
    assert order(waiting(job("low", age_s=60)), waiting(job("high", priority=1))) == ["high", "low"]


def test_tenants_take_turns_whoever_queued_more() -> None:
    many = waiting(job("a1", "a", age_s=9), job("a2", "a", age_s=8), job("a3", "a", age_s=7))
    few = waiting(job("b1", "b", age_s=1))
    assert order(many, few) == ["a1", "b1", "a2", "a3"]


def test_a_tenant_that_runs_less_goes_first() -> None:
    lines = waiting(job("a1", "a", age_s=99)), waiting(job("b1", "b"))
    assert order(*lines, running=Counter(a=3)) == ["b1", "a1"]


def test_among_equals_the_older_starts_first() -> None:
    small = a_job("small", "a", resources=Resources(cpus=2)).changed(queued_at=NOW - timedelta(seconds=5))
    assert order(waiting(job("new")), waiting(small)) == ["small", "new"]


def test_a_line_that_is_never_served_overtakes_any_priority_in_time() -> None:
    starving = waiting(job("starving", priority=-100), waited=201 * AGEING_S)
    assert order(waiting(job("urgent", priority=100)), starving) == ["starving", "urgent"]


def test_a_line_that_is_served_gains_nothing_by_the_age_of_its_jobs() -> None:
    head = job("a1", age_s=10 * AGEING_S)
    served = {line_of(head): NOW - timedelta(seconds=1)}
    assert waited_s(line_of(head), head, served, NOW - timedelta(days=1), NOW) == 1


def test_waiting_is_counted_from_when_this_leader_began() -> None:
    head = job("a1", age_s=10 * AGEING_S)
    assert waited_s(line_of(head), head, {}, NOW - timedelta(seconds=2), NOW) == 2


def test_jobs_of_one_line_have_tenant_priority_and_resources_in_common() -> None:
    assert line_of(job("a1")) == line_of(job("a2"))
    assert line_of(job("a1")) != line_of(job("a1", priority=1))
    assert line_of(a_job()) != line_of(a_job(resources=Resources(devices=1)))
    assert line_of(a_job(type="probe")) != line_of(a_job(type="sft"))
