"""Silence is counted by the scheduler's own clock, and only while it could have heard."""

from __future__ import annotations

from datetime import timedelta

import pytest

from services.scheduler.domain import Job
from services.scheduler.inputs import AttemptLost, StopOverdue
from services.scheduler.liveness import NOT_STARTED_S, RING_AGAIN_S, STOP_OVERDUE_S, UNLISTED_S, Liveness
from shared.contracts.jobs import CancelJob
from shared.contracts.nodes import Capacity, NodeHeartbeat, Role, RunRef
from tests.unit.scheduler.clock import FakeClock
from tests.unit.scheduler.jobs import a_job, dispatch, started, tell

MINE = RunRef(job_id="j1", attempt=1, rank=0, run_id="run")


class Ear:
    """A Liveness with a node `n1` that beats when told to."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.changes = 0
        self.liveness = Liveness(self.clock, timeout_s=30, stop_grace_s=30, on_change=self.changed)
        self.seq = 0

    def changed(self) -> None:
        self.changes += 1

    def beat(
        self, *runs: RunRef, boot: str = "b1", stopping: bool = False, sent_s_ago: float = 0, node: str = "n1"
    ) -> None:
        self.seq += 1
        self.liveness.heard(
            NodeHeartbeat(
                node=node,
                role=Role.trainer,
                boot_id=boot,
                capacity=Capacity(cpus=1, memory_bytes=1),
                runs=list(runs),
                stopping=stopping,
                seq=self.seq,
                at=self.clock.now() - timedelta(seconds=sent_s_ago),
            )
        )

    def listen(self) -> None:
        self.liveness.all_shown()
        self.liveness.tick()

    def pass_s(self, seconds: float, ticking: bool = True, *runs: RunRef, beating: bool = False) -> None:
        """Time goes by, second by second."""
        for _ in range(int(seconds)):
            self.clock.passed_s += 1
            if beating:
                self.beat(*runs)
            if ticking:
                self.liveness.tick()


@pytest.fixture
def ear() -> Ear:
    return Ear()


def a_running_job() -> Job:
    return tell(a_job(), dispatch("n1"), started())


def test_a_node_that_is_silent_for_30_s_has_lost_its_runs(ear: Ear) -> None:
    job = a_running_job()
    ear.beat(MINE)
    ear.listen()
    ear.pass_s(30)
    assert ear.liveness.verdict(job) is None
    ear.pass_s(1)
    verdict = ear.liveness.verdict(job)
    assert isinstance(verdict, AttemptLost)
    assert "silent for 30 s" in verdict.why
    assert ear.liveness.nodes() == []


def test_a_heartbeat_starts_the_count_anew(ear: Ear) -> None:
    job = a_running_job()
    ear.listen()
    ear.pass_s(25)
    ear.beat(MINE)
    ear.pass_s(25)
    assert ear.liveness.verdict(job) is None


def test_nothing_is_lost_before_the_topic_has_been_read(ear: Ear) -> None:
    ear.beat(MINE)
    ear.pass_s(100)
    assert ear.liveness.verdict(a_running_job()) is None


def test_silence_before_this_scheduler_listened_does_not_count(ear: Ear) -> None:
    ear.beat(MINE)
    ear.pass_s(100)
    ear.listen()
    ear.pass_s(20)
    assert ear.liveness.verdict(a_running_job()) is None


def test_time_in_which_this_process_stood_still_does_not_count(ear: Ear) -> None:
    job = a_running_job()
    ear.listen()
    ear.beat(MINE)
    ear.pass_s(60, ticking=False)
    ear.liveness.tick()
    assert ear.liveness.verdict(job) is None
    ear.pass_s(31)
    assert ear.liveness.verdict(job)


def test_time_in_which_the_bus_was_away_does_not_count(ear: Ear) -> None:
    ear.listen()
    ear.beat(MINE)
    ear.pass_s(29)
    ear.liveness.bus_is_away()
    ear.pass_s(29)
    assert ear.liveness.verdict(a_running_job()) is None


def test_after_a_gap_of_the_bus_silence_counts_from_the_first_word_of_anybody(ear: Ear) -> None:
    """The bus answers, and this process may still not hear what is said there."""
    ear.listen()
    ear.beat(MINE)
    ear.liveness.bus_is_away()
    ear.pass_s(60)
    assert ear.liveness.verdict(a_running_job()) is None
    ear.beat(node="n2")
    ear.pass_s(30)
    assert ear.liveness.verdict(a_running_job()) is None
    ear.pass_s(1)
    assert ear.liveness.verdict(a_running_job())


def test_where_nobody_at_all_is_heard_after_a_gap_of_the_bus_all_are_gone_in_the_end(ear: Ear) -> None:
    ear.listen()
    ear.beat(MINE)
    ear.liveness.bus_is_away()
    ear.pass_s(90)
    assert ear.liveness.verdict(a_running_job()) is None
    ear.pass_s(1)
    assert ear.liveness.verdict(a_running_job())


def test_a_node_nobody_has_heard_of_is_gone_after_the_same_time(ear: Ear) -> None:
    ear.listen()
    ear.pass_s(29)
    assert ear.liveness.verdict(a_running_job()) is None
    ear.pass_s(2)
    assert ear.liveness.verdict(a_running_job())


def test_a_run_that_a_new_boot_does_not_list_is_lost_at_once(ear: Ear) -> None:
    job = a_running_job()
    ear.listen()
    ear.pass_s(1)
    ear.beat(MINE)
    ear.pass_s(1)
    ear.beat(boot="b2")
    verdict = ear.liveness.verdict(job)
    assert isinstance(verdict, AttemptLost)
    assert "restarted" in verdict.why


def test_a_run_that_a_new_boot_has_started_since_is_not_lost(ear: Ear) -> None:
    ear.listen()
    ear.beat(boot="b1")
    ear.beat(boot="b2", sent_s_ago=5)
    assert ear.liveness.verdict(a_running_job()) is None


def test_a_run_that_its_own_boot_no_longer_lists_is_lost_after_a_while(ear: Ear) -> None:
    job = a_running_job()
    ear.listen()
    ear.pass_s(1)
    ear.beat(MINE)
    assert ear.liveness.verdict(job) is None
    ear.pass_s(1, beating=True)
    assert ear.liveness.verdict(job) is None
    ear.pass_s(UNLISTED_S + 1, beating=True)
    assert ear.liveness.verdict(job)


def test_a_heartbeat_from_before_the_run_started_says_nothing_about_it(ear: Ear) -> None:
    job = a_running_job()
    ear.listen()
    ear.beat(sent_s_ago=1)
    assert ear.liveness.verdict(job) is None
    ear.pass_s(UNLISTED_S + 5)
    assert ear.liveness.verdict(job) is None


def test_an_orderly_stop_that_lists_no_run_gives_it_up_at_once(ear: Ear) -> None:
    ear.listen()
    ear.pass_s(1)
    ear.beat(stopping=True)
    assert ear.liveness.verdict(a_running_job())
    assert [node.stopping for node in ear.liveness.nodes()] == [True]


def test_an_attempt_nobody_takes_up_is_rung_for_again_and_then_given_up(ear: Ear) -> None:
    job = tell(a_job(), dispatch("n1"))
    ear.listen()
    assert not ear.liveness.ring_again(job)
    assert ear.liveness.verdict(job) is None
    ear.pass_s(RING_AGAIN_S + 1, beating=True)
    assert ear.liveness.ring_again(job)
    assert not ear.liveness.ring_again(job)
    ear.pass_s(NOT_STARTED_S, beating=True)
    assert isinstance(ear.liveness.verdict(job), AttemptLost)


def test_an_attempt_is_not_waited_for_on_a_node_that_is_stopping(ear: Ear) -> None:
    ear.listen()
    ear.beat(stopping=True)
    assert isinstance(ear.liveness.verdict(tell(a_job(), dispatch("n1"))), AttemptLost)


def test_a_run_that_is_being_prepared_is_not_given_up(ear: Ear) -> None:
    job = tell(a_job(), dispatch("n1"))
    ear.listen()
    ear.liveness.verdict(job)
    ear.pass_s(NOT_STARTED_S + 5, True, MINE, beating=True)
    assert ear.liveness.verdict(job) is None


def test_a_worker_that_does_not_stop_is_not_waited_for_for_ever(ear: Ear) -> None:
    job = tell(a_running_job(), CancelJob(job_id="j1"))
    ear.listen()
    assert ear.liveness.verdict(job) is None
    ear.pass_s(31 + STOP_OVERDUE_S, True, MINE, beating=True)
    assert ear.liveness.verdict(job) == StopOverdue(1)


def test_a_node_from_the_topics_past_counts_by_its_own_date(ear: Ear) -> None:
    ear.beat(sent_s_ago=300)
    ear.listen()
    assert ear.liveness.nodes() == []
    ear.beat()
    assert len(ear.liveness.nodes()) == 1


def test_late_copies_of_heartbeats_are_known_as_late(ear: Ear) -> None:
    ear.listen()
    ear.beat(MINE)
    ear.seq = 0
    ear.beat()
    assert ear.liveness.leftovers([]) == [("n1", MINE)]


def test_the_loop_is_woken_by_changes_only(ear: Ear) -> None:
    ear.beat(MINE)
    changes = ear.changes
    ear.beat(MINE)
    assert ear.changes == changes
    ear.beat()
    assert ear.changes == changes + 1


def test_runs_that_are_about_to_stop_still_hold_their_place(ear: Ear) -> None:
    ear.listen()
    ear.beat(MINE)
    assert ear.liveness.leftovers([a_running_job()]) == []
    assert ear.liveness.leftovers([a_job()]) == [("n1", MINE)]
