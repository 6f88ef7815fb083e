"""The loop over a real database, without a bus: what starts, in which order, and what waits."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Engine, select, text

from services.scheduler.deployments import Artifacts, GivenUp
from services.scheduler.domain import Job
from services.scheduler.handlers import Handlers
from services.scheduler.ledger import Ledger
from services.scheduler.liveness import Liveness
from services.scheduler.order import HOLD_BACK_S, line_of
from services.scheduler.rules import Limits
from services.scheduler.scheduler import Scheduler
from services.scheduler.tables import jobs as jobs_table
from services.scheduler.tables import leader
from services.scheduler.truth import Truth, in_line, jobs_where, take_over
from shared.bus.port import Position, Record
from shared.contracts.jobs import JobSpec, PauseJob, Resources, ResumeJob, RunMessage, SubmitJob
from shared.contracts.nodes import Capacity, Device, NodeHeartbeat, Role, RunRef
from shared.contracts.topics import JOBS_COMMANDS, JOBS_EVENTS
from shared.db import open_database
from shared.settings import Settings
from tests.databases import NewDatabase, maker
from tests.unit.scheduler.clock import FakeClock
from tests.unit.scheduler.jobs import a_job, started, succeeded


class Desk:
    """A scheduler with a clock that the test moves, and nodes that say what the test lets them say."""

    def __init__(self, db_url: str, **settings: object) -> None:
        self.engine: Engine = open_database(db_url)
        self.clock = FakeClock()
        self.truth = Truth(self.engine, take_over(self.engine))
        self.ledger = Ledger(self.truth, self.clock, Limits(), on_written=lambda: None)
        self.liveness = Liveness(self.clock, timeout_s=10_000)
        artifacts = Artifacts()
        artifacts.caught_up = True
        given_up, settled = GivenUp(), Settings(**settings)  # type: ignore[arg-type]
        self.scheduler = Scheduler(self.ledger, self.liveness, artifacts, given_up, settled)
        self.handlers = Handlers(self.ledger, self.liveness, artifacts, given_up, wake=lambda: None)
        self.liveness.all_shown()
        self.seq = 0

    def node(
        self, name: str = "n1", slots: int = 1, devices: int = 0, runs: tuple[RunRef, ...] = (), cpus: float = 1000
    ) -> None:
        self.seq += 1
        has = [Device(index=index, kind="H100", memory_bytes=1) for index in range(devices)]
        capacity = Capacity(cpus=cpus, memory_bytes=1, slots=slots, devices=has)
        self.liveness.heard(
            NodeHeartbeat(
                node=name, role=Role.trainer, boot_id="b", capacity=capacity, runs=list(runs), seq=self.seq,
                at=self.clock.now(),
            )
        )  # fmt: skip

    def submit(self, *ids: str, tenant: str = "default", **spec: object) -> None:
        """All in one batch."""
        fields = JobSpec.model_validate({"type": "probe", **spec})
        records = [SubmitJob(job_id=job_id, tenant=tenant, spec=fields) for job_id in ids]
        self.handlers.job_commands([Record(JOBS_COMMANDS, each.job_id, Position(0, 0), each) for each in records])
        self.clock.passed_s += 0.001

    def steer(self, *commands: PauseJob | ResumeJob) -> None:
        records = [Record(JOBS_COMMANDS, each.job_id, Position(0, 0), each) for each in commands]
        self.handlers.job_commands(records)

    def said(self, *messages: RunMessage) -> None:
        self.handlers.job_events([Record(JOBS_EVENTS, each.job_id, Position(0, 0), each) for each in messages])

    def look(self, passed_s: float = 1.0) -> None:
        self.clock.passed_s += passed_s
        self.scheduler.reconcile()

    def job(self, job_id: str) -> Job:
        with self.ledger.decide() as work:
            return work.jobs([job_id])[job_id]

    def started(self) -> list[str]:
        with self.ledger.decide() as work:
            return sorted(job.id for job in work.active())

    def finish(self, job_id: str) -> None:
        """The job runs and ends at once, with nothing to publish."""
        begun = started(self.job(job_id).attempt, job_id=job_id)
        over = succeeded(self.job(job_id).attempt, outputs=()).changed(job_id=job_id)
        self.said(begun, over)


@pytest.fixture
def desk(new_database: NewDatabase) -> Desk:
    return Desk(new_database("scheduler"))


def test_free_slots_are_shared_between_tenants(desk: Desk) -> None:
    desk.submit("a1", "a2", "a3", tenant="a")
    desk.submit("b1", tenant="b")
    desk.node(slots=2)
    desk.look()
    assert desk.started() == ["a1", "b1"]


def test_a_slot_that_becomes_free_goes_to_the_next_in_turn(desk: Desk) -> None:
    desk.submit("low")
    desk.submit("high", "higher", priority=5)
    desk.node()
    order = []
    for _ in range(3):
        desk.look()
        (running,) = desk.started()
        order.append(running)
        desk.finish(running)
    assert order == ["high", "higher", "low"]


def test_a_tenant_at_its_limit_waits_and_is_told_so(new_database: NewDatabase) -> None:
    desk = Desk(new_database("scheduler"), max_running_jobs=1)
    desk.submit("a1", "a2", tenant="a")
    desk.submit("b1", tenant="b")
    desk.node(slots=9)
    desk.look()
    assert desk.started() == ["a1", "b1"]
    assert "which is the limit" in desk.job("a2").reason


def test_a_large_job_is_not_passed_by_small_ones_for_ever(desk: Desk) -> None:
    desk.node("n1")
    desk.node("n2")
    desk.submit("small0")
    desk.look()
    desk.submit("gang", resources=Resources(nodes=2))
    for number in range(1, 4):
        desk.submit(f"small{number}")
    desk.look(HOLD_BACK_S + 1)
    while "gang" not in (now := desk.started()):
        desk.finish(now[0])
        desk.look()
    assert desk.job("small3").status == "queued"


def test_a_job_that_fits_passes_one_that_does_not(desk: Desk) -> None:
    desk.submit("huge", resources=Resources(devices=8))
    desk.submit("small")
    desk.node()
    desk.look()
    assert desk.started() == ["small"]
    assert desk.job("huge").reason == "needs 8 devices; the largest node has 0"
    assert not desk.job("huge").placeable
    desk.node(devices=8)
    desk.look()
    assert desk.started() == ["huge", "small"]
    assert desk.job("huge").placeable


def test_a_job_that_only_waits_is_one_that_could_start(desk: Desk) -> None:
    desk.submit("first", "second")
    desk.look()
    assert desk.job("second").reason == "waits for a trainer node"
    assert desk.job("second").placeable  # nodes come and go
    desk.node()
    desk.look()
    assert desk.job("second").reason == "waits for its turn"
    assert desk.job("second").placeable


def test_a_job_that_is_resumed_is_one_that_could_start_once_a_node_has_room_for_it(desk: Desk) -> None:
    desk.node("n1", slots=1)
    desk.submit("other")
    desk.look()
    desk.submit("huge", resources=Resources(cpus=2000))
    desk.look(10)
    assert not desk.job("huge").placeable
    desk.steer(PauseJob(job_id="huge"), ResumeJob(job_id="huge"))
    desk.node("n2", cpus=4000, slots=0)
    desk.look(10)
    assert desk.job("huge").reason == "waits for its turn"
    assert desk.job("huge").placeable


def test_what_is_left_of_a_gang_holds_its_node_once_and_its_own_devices(desk: Desk) -> None:
    left = tuple(RunRef(job_id="old", attempt=1, rank=rank, run_id=f"run-{rank}") for rank in (0, 1))
    desk.node(devices=4, slots=1)
    desk.submit("old", resources=Resources(devices=2, cpus=600))
    desk.look()
    assert [place.devices for place in desk.job("old").places] == [[0], [1]]
    desk.node(devices=4, runs=left)
    desk.said(*(started(1, f"run-{rank}", rank, job_id="old") for rank in (0, 1)))
    desk.said(succeeded(1, "run-0", outputs=()).changed(job_id="old"))
    desk.submit("next", resources=Resources(devices=2, cpus=400))
    desk.submit("last", resources=Resources(devices=1, cpus=1))
    desk.look()
    assert [place.devices for place in desk.job("next").places] == [[2], [3]]
    assert "last" not in desk.started()
    desk.node(devices=4, runs=left[:1])
    desk.look()
    assert "last" not in desk.started()  # rank 0 has the node's 600 processors still


def test_a_device_is_free_only_when_the_old_run_has_left_it(desk: Desk) -> None:
    """The job was cancelled, but its child still has the accelerator's memory."""
    desk.node(devices=1)
    desk.submit("old", resources=Resources(devices=1))
    desk.look()
    left = RunRef(job_id="old", attempt=1, rank=0, run_id="run")
    desk.node(devices=1, runs=(left,))
    desk.finish("old")
    desk.submit("next", resources=Resources(devices=1))
    desk.look()
    assert desk.started() == []
    desk.node(devices=1)
    desk.look()
    assert desk.started() == ["next"]


def test_nothing_starts_before_the_nodes_are_known(new_database: NewDatabase) -> None:
    desk = Desk(new_database("scheduler"))
    desk.liveness.caught_up = False
    desk.submit("j1")
    desk.node()
    desk.look()
    assert desk.job("j1").reason == "waits for its turn"
    assert desk.started() == []


def test_a_batch_of_submits_is_one_transaction(desk: Desk) -> None:
    def writes() -> int:
        with desk.engine.connect() as connection:
            return connection.execute(select(leader.c.writes)).scalar_one()

    before = writes()
    desk.submit(*(f"j{number}" for number in range(256)))
    assert writes() == before + 1


def test_a_look_that_changes_nothing_writes_nothing(desk: Desk) -> None:
    desk.node()
    desk.submit("j1", "j2")
    desk.look()
    with desk.engine.connect() as connection:
        before = connection.execute(select(leader.c.writes)).scalar_one()
    desk.look(2)
    with desk.engine.connect() as connection:
        assert connection.execute(select(leader.c.writes)).scalar_one() == before


@pytest.mark.parametrize(
    ("query", "index"),
    [
        (jobs_where(jobs_table.c.status.in_(["starting", "running"])), "jobs_"),
        (jobs_where(jobs_table.c.status.in_(["backoff"]), jobs_table.c.not_before <= 1.0), "jobs_due"),
        (jobs_where(jobs_table.c.finished_at < 1.0), "jobs_finished"),
        (in_line(line_of(a_job())).order_by(jobs_table.c.queued_at).limit(1), "jobs_in_line"),
    ],
)
def test_the_loop_reads_by_index_however_many_jobs_have_ended(
    query: object, index: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    desk = Desk(maker("sqlite", request, tmp_path)("scheduler"))
    sql = query.compile(desk.engine, compile_kwargs={"literal_binds": True})  # type: ignore[attr-defined]
    with desk.engine.connect() as connection:
        plan = " ".join(row[3] for row in connection.execute(text(f"EXPLAIN QUERY PLAN {sql}")))
    assert "SEARCH jobs USING INDEX " + index in plan


def test_dispatching_names_the_places(desk: Desk) -> None:
    desk.node(devices=2)
    desk.submit("j1", type="sft")
    desk.look()
    (place,) = desk.job("j1").places
    assert (place.node, place.devices) == ("n1", [0])
