"""The scheduler over a bus, with a real database, among fakes that speak the contracts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from pathlib import Path

import orjson
import pytest
from sqlalchemy import select

from services.scheduler.main import leadership_of
from services.scheduler.tables import handled, outgoing
from services.scheduler.tables import jobs as jobs_table
from services.scheduler.truth import Deposed, take_over
from shared.bus.port import Bus
from shared.contracts.artifacts import ArtifactKind, CommandRejected, PublishArtifact
from shared.contracts.deployments import (
    Deploy,
    DeploymentSpec,
    DesiredDeployment,
    ReplicaPlace,
    ReplicaState,
    ReplicaStatus,
    Scale,
    Undeploy,
)
from shared.contracts.jobs import CancelJob, JobSpec, JobTransitioned, PauseJob, Resources, ResumeJob, SubmitJob, Wish
from shared.contracts.message import Message
from shared.contracts.nodes import Capacity, Device, NodeHeartbeat, Role, node_key
from shared.contracts.topics import (
    ATTEMPTS_DESIRED,
    DEPLOYMENTS_COMMANDS,
    DEPLOYMENTS_DESIRED,
    DEPLOYMENTS_STATUS,
    JOBS_COMMANDS,
    JOBS_EVENTS,
    JOBS_STATE,
    NODES_HEARTBEATS,
    REGISTRY_EVENTS,
)
from shared.db import open_database
from tests.ground import Ground, opened
from tests.integration.scheduler_world import FakeTrainer, World
from tests.waiting import eventually


@pytest.fixture(params=["memory", "valkey", "cluster"])
def ground(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ground]:
    with opened(request.param, request, tmp_path) as ground:
        yield ground


@pytest.fixture
def world(tmp_path: Path, ground: Ground) -> Iterator[World]:
    world = World(tmp_path, ground.bus, db_url=ground.new_database("scheduler"))
    yield world
    world.close()
    assert not world.failures


def run_of(trainer: FakeTrainer, job: str) -> str:
    run = eventually(lambda: trainer.run_of(job), what="the trainer takes the job up")
    assert run
    return run


def test_a_job_goes_from_submit_to_its_artifact(world: World) -> None:
    world.start_scheduler()
    registry = world.registry()
    world.trainer(finish=True)
    job = world.submit()
    state = world.until(job, "succeeded")
    assert [pin.name for pin in state.outputs] == [state.spec.output]
    assert len(registry.made) == 1
    assert ("n1", job, 1) in world.doorbell.rung
    eventually(lambda: world.desired(job) is None, what="the tombstone")


def test_a_running_job_is_cancelled_through_its_worker(world: World) -> None:
    world.start_scheduler()
    trainer = world.trainer()
    job = world.submit()
    run_of(trainer, job)
    world.until(job, "running")
    world.command(CancelJob(job_id=job))
    world.until(job, "cancelled")
    assert trainer.run_of(job) is None


def test_a_cancel_that_comes_before_its_submit_is_remembered(world: World) -> None:
    world.start_scheduler()
    world.trainer(finish=True)
    world.command(CancelJob(job_id="early"))
    world.command(SubmitJob(job_id="early", spec=JobSpec(type="probe")))
    world.until("early", "cancelled")


def test_a_paused_job_goes_on_from_its_checkpoint(world: World) -> None:
    world.start_scheduler()
    trainer = world.trainer()
    job = world.submit()
    run = run_of(trainer, job)
    world.until(job, "running")
    trainer.checkpoint(run, step=4)
    world.command(PauseJob(job_id=job))
    world.until(job, "paused")
    world.command(ResumeJob(job_id=job))
    again = eventually(lambda: trainer.run_of(job))
    assert again
    resumed = trainer.runs[again]
    assert resumed.attempt == 2
    assert resumed.resume_from
    assert resumed.resume_from.step == 4


def test_a_job_whose_node_falls_silent_goes_on_elsewhere_and_the_old_run_is_not_heard(world: World) -> None:
    world.settings = world.settings.model_copy(update={"heartbeat_timeout_s": 1.0})
    world.start_scheduler()
    registry = world.registry()
    lost = world.trainer("lost")
    with beating(lost):
        job = world.submit()
        old = run_of(lost, job)
        world.until(job, "running")
    lost.die()
    other = world.trainer("other")
    with beating(other):
        new = run_of(other, job)
        state = eventually(lambda: (s := world.state(job)) and s.status == "running" and s.attempt == 2 and s)
        assert state
        assert "silent" in state.attempts[0].failure.message
        lost.succeed(old)
        other.succeed(new)
        world.until(job, "succeeded")
    assert [command.staged_prefix for command in registry.asked] == [f"staging/{new}/out"]


@contextmanager
def beating(trainer: FakeTrainer) -> Iterator[None]:
    """Within, the node goes on saying that it lives."""
    stopping = threading.Event()

    def beat() -> None:
        while not stopping.wait(0.2):
            trainer.beat()

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def test_a_restarted_worker_that_does_not_list_its_run_loses_it_at_once(world: World) -> None:
    world.start_scheduler()
    trainer = world.trainer()
    job = world.submit()
    run_of(trainer, job)
    world.until(job, "running")
    trainer.die()
    again = world.trainer()
    assert run_of(again, job)
    state = eventually(lambda: (s := world.state(job)) and s.attempt == 2 and s)
    assert state
    assert "restarted" in state.attempts[0].failure.message


def test_a_submission_that_cannot_be_read_is_a_failed_job(world: World, ground: Ground) -> None:
    world.start_scheduler()
    broken = SubmitJob(job_id="bad", spec=JobSpec(type="sft"))
    raw = orjson.loads(broken.encode())
    raw["body"]["spec"]["priority"] = "high"
    ground.put_raw(JOBS_COMMANDS, "bad", orjson.dumps(raw))
    state = world.until("bad", "failed")
    assert state.failure
    assert state.failure.reason == "undecodable"
    assert "priority" in state.reason
    assert state.spec.type == "sft"


def test_a_command_on_the_wrong_topic_does_not_hold_up_the_others(world: World) -> None:
    world.start_scheduler()
    world.bus.publish(JOBS_COMMANDS, "odd", Undeploy(name="chat")).result()
    job = world.submit()
    world.until(job, "queued")
    eventually(lambda: world.bus.dlq_depth(JOBS_COMMANDS) == 1)


def test_a_202_survives_a_scheduler_that_dies_before_it_could_say_anything(world: World) -> None:
    """Killed between the commit and the bus: the next one says what was to be said."""
    away = AwayBus(world.own_bus())
    world.start_scheduler(away)
    job = world.submit()
    eventually(lambda: stored(world, job), what="the truth has the job")
    assert world.state(job) is None
    world.stop_scheduler()
    world.registry()
    world.start_scheduler()
    world.trainer(finish=True)
    world.until(job, "succeeded")


class AwayBus:
    """A bus that delivers, but takes nothing."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def publish(self, topic: object, key: object, message: object) -> object:
        from concurrent.futures import Future

        from shared.bus.port import BusUnavailable

        future: Future[object] = Future()
        future.set_exception(BusUnavailable("the bus is away"))
        return future

    def __getattr__(self, name: str) -> object:
        return getattr(self._bus, name)


def stored(world: World, job: str) -> bool:
    assert world.service
    with world.service.truth.reading() as connection:
        return connection.scalar(select(jobs_table.c.id).where(jobs_table.c.id == job)) is not None


def test_a_scheduler_that_comes_back_takes_running_jobs_as_they_are(world: World) -> None:
    world.start_scheduler()
    registry = world.registry()
    trainer = world.trainer()
    job = world.submit()
    run = run_of(trainer, job)
    world.until(job, "running")
    world.stop_scheduler()
    trainer.succeed(run)
    world.start_scheduler()
    state = world.until(job, "succeeded")
    assert state.attempt == 1
    assert len(registry.asked) == len(registry.made) == 1


def test_whatever_arrives_twice_changes_nothing(world: World) -> None:
    """Every record of every topic that the scheduler reads is put there again after the end."""
    world.start_scheduler()
    registry = world.registry()
    trainer = world.trainer()
    said: list[tuple[object, str, Message]] = []
    for topic in (JOBS_COMMANDS, JOBS_EVENTS, REGISTRY_EVENTS):
        world.own_bus().subscribe(topic, "spy", lambda batch: said.extend((r.topic, r.key, r.message) for r in batch))
    job, paused = world.submit(), world.submit()
    world.command(PauseJob(job_id=paused))
    world.until(paused, "paused")
    world.command(ResumeJob(job_id=paused))
    run = run_of(trainer, job)
    trainer.checkpoint(run, 1)
    trainer.succeed(run)
    before = world.until(job, "succeeded")
    run_of(trainer, paused)
    running = world.until(paused, "running")
    assert len(said) > 8
    for topic, key, message in said.copy():
        world.bus.publish(topic, key, message).result()  # type: ignore[arg-type]
    last = world.submit()
    world.command(CancelJob(job_id=last))
    world.until(last, "cancelled")
    eventually(lambda: world.bus.lag(JOBS_EVENTS, "scheduler") == 0)
    assert world.state(job) == before
    assert world.state(paused).version == running.version  # type: ignore[union-attr]
    assert len(registry.asked) == 1


def test_a_wiped_bus_heals_from_the_truth(tmp_path: Path, ground: Ground) -> None:
    db_url = ground.new_database("scheduler")
    world = World(tmp_path, ground.bus, db_url=db_url)
    world.start_scheduler()
    trainer = world.trainer()
    job, waiting = world.submit(), world.submit()
    run_of(trainer, job)
    before = world.until(job, "running")
    world.until(waiting, "queued")
    world.close()
    ground.wipe_bus()

    wiped = World(tmp_path, ground.bus, db_url=db_url)
    assert wiped.state(job) is None
    wiped.start_scheduler()
    after = wiped.until(job, "running")
    assert after.version == before.version
    wiped.until(waiting, "queued")
    wanted = eventually(lambda: wiped.desired(job))
    assert wanted
    assert wanted.wish is Wish.run
    assert list(wanted.accepted) == [0]
    wiped.close()


def test_what_the_truth_does_not_know_disappears_from_the_bus(world: World) -> None:
    world.start_scheduler()
    job = world.submit()
    state = world.until(job, "queued")
    world.stop_scheduler()
    world.bus.publish(JOBS_STATE, "ghost", state.changed(job_id="ghost")).result()
    eventually(lambda: world.state("ghost"))
    world.start_scheduler()
    eventually(lambda: world.state("ghost") is None)
    assert world.state(job)


def test_a_refusal_that_may_pass_does_not_fail_the_job(world: World) -> None:
    refusals: list[str] = []

    def refuse_once(command: PublishArtifact) -> Message:
        if not refusals:
            refusals.append(command.publication_id)
            return CommandRejected(
                command_id=command.id,
                publication_id=command.publication_id,
                job_id=command.job_id,
                reason="the store is away",
                retryable=True,
            )
        return registry.publish(command)

    service = world.start_scheduler()
    registry = world.registry(refuse_once)
    trainer = world.trainer()
    job = world.submit()
    trainer.succeed(run_of(trainer, job))
    eventually(lambda: "the store is away" in (world.state(job).reason if world.state(job) else ""))
    hurry(service)
    world.until(job, "succeeded")
    assert len(registry.made) == 1


def hurry(service: object) -> None:
    """Let the clock of the scheduler say that a minute has passed."""
    clock = service.ledger.clock  # type: ignore[attr-defined]
    now = clock.now
    clock.now = lambda: now() + timedelta(minutes=1)


def test_old_jobs_are_forgotten_everywhere(world: World) -> None:
    world.settings = world.settings.model_copy(update={"job_retention_days": 1e-6})
    world.start_scheduler()
    job = world.submit()
    world.command(CancelJob(job_id=job))
    eventually(lambda: world.service and not stored(world, job) and world.state(job) is None)


def test_a_job_that_fits_nowhere_says_so(world: World) -> None:
    world.start_scheduler()
    job = world.submit(resources={"devices": 4})
    eventually(lambda: (s := world.state(job)) and s.reason == "waits for a trainer node")
    world.trainer()
    eventually(lambda: (s := world.state(job)) and s.reason == "needs 4 devices; the largest node has 0")
    small = world.submit()
    world.until(small, "running")


def test_transitions_are_told_as_events_in_order_and_once(world: World) -> None:
    world.start_scheduler()
    world.registry()
    told: list[JobTransitioned] = []
    spy = world.own_bus()
    spy.subscribe(
        JOBS_EVENTS,
        "spy",
        lambda batch: told.extend(r.message for r in batch if isinstance(r.message, JobTransitioned)),
    )
    world.trainer(finish=True)
    job = world.submit()
    world.until(job, "succeeded")
    eventually(lambda: len(told) == 4)
    assert [event.after for event in told] == ["starting", "running", "publishing", "succeeded"]


def test_hundreds_of_jobs_of_two_tenants_all_succeed_once(world: World) -> None:
    world.start_scheduler()
    registry = world.registry()
    world.trainer(slots=60, finish=True)
    jobs = [world.submit(tenant=f"t{number % 2}") for number in range(150)]
    for job in jobs:
        world.until(job, "succeeded", timeout_s=60)
    assert len(registry.made) == 150
    assert world.service
    eventually(lambda: world.service.outbox.age_s() == 0)  # type: ignore[union-attr]
    with world.service.truth.reading() as connection:
        assert connection.scalar(select(outgoing.c.id)) is None
        assert len(connection.scalars(select(handled.c.id)).all()) == 150


# ── Leadership ──


def test_a_second_scheduler_stands_by_until_the_first_is_gone(world: World) -> None:
    first = world.start_scheduler()
    standby = leadership_of(world.settings, open_database(world.settings.effective_db_url("scheduler")))
    told_to_stop = threading.Event()
    told_to_stop.set()
    assert not standby.acquire(told_to_stop)
    leads: list[bool] = []
    waiting = threading.Thread(target=lambda: leads.append(standby.acquire(threading.Event())))
    waiting.start()
    assert not leads
    world.stop_scheduler()
    waiting.join(10)
    assert leads == [True]
    assert take_over(first.truth.engine) == first.truth.epoch + 1
    standby.release()


def test_a_scheduler_that_was_deposed_writes_nothing_and_ends(tmp_path: Path, ground: Ground) -> None:
    world = World(tmp_path, ground.bus, db_url=ground.new_database("scheduler"))
    service = world.start_scheduler()
    take_over(service.truth.engine)
    job = world.submit()
    with pytest.raises(Deposed), service.truth.writing():
        pytest.fail("it wrote")
    eventually(lambda: any(isinstance(error, Deposed) for error in world.failures))
    assert not stored(world, job)
    world.close()


# ── Deployments ──


GPU = Capacity(cpus=8, memory_bytes=2**36, devices=[Device(index=0, kind="H100", memory_bytes=2**36)])
BEATS = count()
NO_DEVICE = Resources(devices=0)


def inference_node(world: World, node: str = "g1", listed: str = "") -> None:
    """A word of its agent, which lists one replica or none."""
    listing = [listed] if listed else []
    beat = NodeHeartbeat(node=node, role=Role.inference, boot_id="b", capacity=GPU, replicas=listing, seq=next(BEATS))
    world.bus.publish(NODES_HEARTBEATS, node_key(node, Role.inference), beat).result()


def deployment(world: World) -> DesiredDeployment | None:
    shown = world.shown[DEPLOYMENTS_DESIRED].get("default/chat")
    return shown if isinstance(shown, DesiredDeployment) else None


def test_a_deployment_is_placed_scaled_given_adapters_and_removed(world: World) -> None:
    world.start_scheduler()
    registry = world.registry()
    model = registry.register("base", ArtifactKind.model)
    inference_node(world)
    world.deploy(Deploy(name="chat", spec=DeploymentSpec(model=model, replicas=2, resources=NO_DEVICE)))
    placed = eventually(lambda: (d := deployment(world)) and len(d.replicas) == 2 and d)
    assert placed

    registry.register("style", ArtifactKind.adapter, base="base@1")
    eventually(lambda: (d := deployment(world)) and [pin.ref for pin in d.spec.adapters] == ["style@1"])

    world.deploy(Scale(name="chat", replicas=1))
    eventually(lambda: (d := deployment(world)) and d.replicas == placed.replicas[:1])

    world.deploy(Undeploy(name="chat"))
    eventually(lambda: deployment(world) is None)


def test_a_deploy_that_arrives_twice_does_not_undo_a_scale(world: World) -> None:
    world.start_scheduler()
    model = world.registry().register("base", ArtifactKind.model)
    inference_node(world)
    deploy = Deploy(name="chat", spec=DeploymentSpec(model=model, resources=NO_DEVICE))
    world.deploy(deploy)
    world.deploy(Scale(name="chat", replicas=3))
    world.deploy(deploy)
    eventually(lambda: (d := deployment(world)) and len(d.replicas) == 3)
    eventually(lambda: world.bus.lag(DEPLOYMENTS_COMMANDS, "scheduler") == 0)
    assert len(deployment(world).replicas) == 3  # type: ignore[union-attr]


def agent_says(world: World, place: ReplicaPlace, state: ReplicaState, version: int, reason: str = "") -> None:
    """A status of a replica, and a heartbeat that lists it."""
    status = ReplicaStatus(
        replica_id=place.replica_id,
        deployment="chat",
        node=place.node,
        state=state,
        reason=reason,
        deployment_version=version,
    )
    inference_node(world, place.node, listed=place.replica_id)
    world.bus.publish(DEPLOYMENTS_STATUS, place.replica_id, status).result()


def test_the_device_of_a_replica_that_was_given_up_goes_to_a_job(world: World) -> None:
    """Given up while no scheduler was there: the next one hears of it from the topic."""
    world.start_scheduler()
    model = world.registry().register("base", ArtifactKind.model)
    trainer = world.trainer("g1")
    trainer.capacity = GPU
    trainer.beat()
    inference_node(world)
    world.deploy(Deploy(name="chat", spec=DeploymentSpec(model=model)))
    placed = eventually(lambda: (d := deployment(world)) and d.replicas and d)
    assert placed
    (seat,) = placed.replicas
    assert seat.devices == [0]
    world.stop_scheduler()
    agent_says(world, seat, ReplicaState.failed, placed.version, "no room for the KV cache")
    job = world.submit(resources=Resources(devices=1))
    world.start_scheduler()

    failed = eventually(lambda: (d := deployment(world)) and d.failures and d)
    assert failed
    assert (failed.replicas, failed.failures[0].reason) == ([], "no room for the KV cache")
    assert "failed on g1: no room for the KV cache" in failed.problem
    inference_node(world)  # which has let go of it
    run = run_of(trainer, job)
    assert trainer.runs[run].places[0].devices == [0]


def test_deploying_again_tries_a_failed_deployment_again(world: World) -> None:
    world.start_scheduler()
    model = world.registry().register("base", ArtifactKind.model)
    inference_node(world)
    spec = DeploymentSpec(model=model)
    world.deploy(Deploy(name="chat", spec=spec))
    placed = eventually(lambda: (d := deployment(world)) and d.replicas and d)
    assert placed
    agent_says(world, placed.replicas[0], ReplicaState.failed, placed.version, "broken")
    eventually(lambda: (d := deployment(world)) and d.failures)
    inference_node(world)
    world.deploy(Deploy(name="chat", spec=spec))
    again = eventually(lambda: (d := deployment(world)) and d.replicas and d)
    assert again
    assert again.failures == []
    assert again.problem == ""
    assert again.replicas[0].replica_id != placed.replicas[0].replica_id


def test_desired_attempts_of_unknown_jobs_are_taken_back(world: World) -> None:
    """A worker that runs what nobody knows is told so by a tombstone."""
    world.start_scheduler()
    trainer = world.trainer()
    job = world.submit()
    run_of(trainer, job)
    wanted = eventually(lambda: world.desired(job))
    assert wanted
    ghost = wanted.changed(job_id="ghost", places=[p.changed(node="n1") for p in wanted.places], accepted={})
    world.bus.publish(ATTEMPTS_DESIRED, "ghost", ghost).result()
    eventually(lambda: ("ghost", 1, 0) in trainer.seen)
    eventually(lambda: trainer.run_of("ghost") is None)
