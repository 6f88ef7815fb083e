"""Whatever is said, doubled, reordered or late: a job never does what it must never do."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from services.scheduler.domain import Job, PublishOutput, Transitioned
from services.scheduler.inputs import AnswerOverdue, AttemptLost, BackoffOver, StopOverdue, Waits
from services.scheduler.transitions import Input
from shared.contracts.jobs import CancelJob, PauseJob, ResumeJob, SubmitJob
from tests.unit.scheduler.jobs import (
    a_job,
    dispatch,
    done,
    failed,
    rejected,
    saved,
    started,
    stopped,
    succeeded,
    told,
)

ATTEMPTS, RUNS, RANKS = st.integers(1, 4), st.sampled_from(["r1", "r2"]), st.integers(0, 1)
FENCE = {"attempt": ATTEMPTS, "run": RUNS, "rank": RANKS}
OUTPUTS = st.sampled_from([(), ("out",), ("out", "merged")])

FROM_THE_BUS = st.one_of(
    st.sampled_from([CancelJob(job_id="j1"), PauseJob(job_id="j1"), ResumeJob(job_id="j1")]),
    st.just(SubmitJob(job_id="j1", spec=a_job().spec)),
    st.builds(started, **FENCE),
    st.builds(saved, step=st.integers(0, 5), **FENCE),
    st.builds(succeeded, outputs=OUTPUTS, **FENCE),
    st.builds(failed, retryable=st.booleans(), lost=st.booleans(), **FENCE),
    st.builds(stopped, **FENCE),
    st.builds(done, output=st.sampled_from(["out", "merged"])),
    st.builds(rejected, output=st.sampled_from(["out", "merged"]), retryable=st.booleans()),
)
FROM_THE_TICK = st.one_of(
    st.builds(AttemptLost, ATTEMPTS, st.just("silence")),
    st.builds(StopOverdue, ATTEMPTS),
    st.sampled_from([BackoffOver(), AnswerOverdue(), Waits("for a node"), Waits("its turn")]),
)


class OneJob(RuleBasedStateMachine):
    """A job of two ranks that hears anything in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.job = a_job(nodes=2)
        self.accepted: dict[tuple[int, int], str] = {}
        self.published_from: set[str] = set()

    @rule(nodes=st.just(("a", "b")))
    def dispatches(self, nodes: tuple[str, str]) -> None:
        self.hear(dispatch(*nodes))

    @rule()
    def starts_as_told(self) -> None:
        for rank in (0, 1):
            self.hear(started(self.job.attempt, "r1", rank))

    @rule(message=FROM_THE_TICK)
    def ticks(self, message: Input) -> None:
        self.hear(message)

    @rule(message=FROM_THE_BUS)
    def hears_twice(self, message: Input) -> None:
        self.hear(message)
        again, effects = told(self.job, message)
        assert again is self.job, "a repeat changed something"
        assert not any(isinstance(effect, PublishOutput | Transitioned) for effect in effects)

    @invariant()
    def accepts_one_run_per_attempt_and_rank(self) -> None:
        for attempt in self.job.attempts:
            for rank, run in attempt.runs.items():
                assert self.accepted.setdefault((attempt.attempt, rank), run) == run

    @invariant()
    def publishes_what_one_run_made(self) -> None:
        assert len(self.published_from) <= 1

    @invariant()
    def holds_places_only_while_active(self) -> None:
        ended = [attempt.ended_at is not None for attempt in self.job.attempts]
        assert all(ended[:-1])
        assert not ended or ended[-1] == (self.job.current is None)

    @invariant()
    def says_how_it_ended(self) -> None:
        assert self.job.status.terminal == (self.job.finished_at is not None)
        assert (self.job.status == "failed") == (self.job.failure is not None)
        if self.job.status == "succeeded":
            assert not self.job.unpublished

    def hear(self, message: Input) -> None:
        before = self.job
        self.job, effects = told(before, message)
        if before.status.terminal:
            assert self.job is before, "a terminal job changed"
        self.check_versions(before)
        moved = self.job.status is not before.status
        assert moved == any(isinstance(effect, Transitioned) for effect in effects)
        for effect in effects:
            if isinstance(effect, PublishOutput):
                self.published_from.add(effect.output.staged_prefix.rpartition("/")[0])

    def check_versions(self, before: Job) -> None:
        changed = self.job is not before
        assert self.job.version == before.version + changed
        assert (self.job.desired_version == self.job.version and changed) == (self.job.wanted != before.wanted)


TestOneJob = OneJob.TestCase
TestOneJob.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
