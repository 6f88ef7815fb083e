"""A scheduler on a real database among fakes that speak the contracts: trainer nodes and a registry over one bus."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from services.scheduler.main import Service, leadership_of
from services.scheduler.truth import take_over
from shared.bus.port import Bus, Record
from shared.contracts.artifacts import (
    ArtifactKind,
    ArtifactPin,
    ArtifactVersionState,
    CommandDone,
    Manifest,
    PublishArtifact,
    manifest_key,
    version_key,
)
from shared.contracts.jobs import (
    AttemptStarted,
    AttemptStopped,
    AttemptSucceeded,
    CheckpointRef,
    CheckpointSaved,
    DesiredAttempt,
    JobSpec,
    JobState,
    Output,
    Place,
    RunMessage,
    SubmitJob,
    Wish,
)
from shared.contracts.message import Message
from shared.contracts.nodes import Capacity, NodeHeartbeat, Role, RunRef, node_key
from shared.contracts.topics import (
    ATTEMPTS_DESIRED,
    DEPLOYMENTS_COMMANDS,
    DEPLOYMENTS_DESIRED,
    JOBS_COMMANDS,
    JOBS_EVENTS,
    JOBS_STATE,
    NODES_HEARTBEATS,
    REGISTRY_COMMANDS,
    REGISTRY_EVENTS,
    REGISTRY_STATE,
    Topic,
)
from shared.db import migrate, open_database
from shared.doorbell.memory import MemoryDoorbell
from shared.settings import Settings
from tests.ground import close_all
from tests.waiting import eventually


class FakeTrainer:
    """A node that takes up what it is told to and does nothing with it: a test says how each run ends.

    It starts a run for every seat on it with the wish `run` that nobody was accepted for, and stops runs that are not
    wanted any more, as a worker must.
    """

    def __init__(self, bus: Bus, node: str, slots: int = 1, finish: bool = False) -> None:
        self.bus = bus
        self.node = node
        self.capacity = Capacity(cpus=64, memory_bytes=2**36, slots=slots)
        self.finish = finish
        """Succeed at once, with one output."""
        self.runs: dict[str, DesiredAttempt] = {}
        self.seen: set[tuple[str, int, int]] = set()
        self.boot_id = uuid4().hex
        self.seq = 0
        self._lock = threading.RLock()
        self._following = bus.follow(ATTEMPTS_DESIRED, self.on_desired)
        self.beat()

    def die(self) -> None:
        """kill -9: not a word more."""
        self._following.close()

    def on_desired(self, record: Record) -> None:
        with self._lock:
            wanted = record.message if isinstance(record.message, DesiredAttempt) else None
            for run_id, held in list(self.runs.items()):
                if held.job_id == record.key:
                    self._converge(run_id, held, wanted)
            for place in wanted.places if wanted and wanted.wish is Wish.run else []:
                seat = (record.key, wanted.attempt, place.rank) if wanted else None
                if place.node == self.node and wanted and place.rank not in wanted.accepted and seat not in self.seen:
                    self.start(wanted, place)

    def start(self, wanted: DesiredAttempt, place: Place, run_id: str = "") -> str:
        run_id = run_id or uuid4().hex
        with self._lock:
            self.seen.add((wanted.job_id, wanted.attempt, place.rank))
            self.runs[run_id] = wanted
            self.say(AttemptStarted, run_id, node=self.node, pid=1)
            self.beat()
            if self.finish:
                self.succeed(run_id)
        return run_id

    def run_of(self, job_id: str) -> str | None:
        with self._lock:
            return next((run for run, held in self.runs.items() if held.job_id == job_id), None)

    def checkpoint(self, run_id: str, step: int) -> None:
        held = self.runs[run_id]
        ref = CheckpointRef(
            step=step, key=f"staging/{run_id}/{step}", attempt=held.attempt, run_id=run_id, at=datetime.now(UTC)
        )
        self.say(CheckpointSaved, run_id, checkpoint=ref)

    def succeed(self, run_id: str) -> None:
        held = self.runs[run_id]
        output = Output(name=held.spec.output, kind=held.spec.output_kind, staged_prefix=f"staging/{run_id}/out")
        self.say(AttemptSucceeded, run_id, outputs=[output])
        self.end(run_id)

    def say(self, kind: type[RunMessage], run_id: str, **more: object) -> RunMessage:
        held = self.runs[run_id]
        rank = next((place.rank for place in held.places if place.node == self.node), 0)
        fence = {"job_id": held.job_id, "attempt": held.attempt, "rank": rank, "run_id": run_id}
        message = kind.model_validate({**fence, **more})
        self.bus.publish(JOBS_EVENTS, held.job_id, message).result()
        return message

    def end(self, run_id: str) -> None:
        with self._lock:
            del self.runs[run_id]
            self.beat()

    def beat(self, stopping: bool = False) -> None:
        self.seq += 1
        refs = [RunRef(job_id=h.job_id, attempt=h.attempt, rank=0, run_id=run) for run, h in self.runs.items()]
        beat = NodeHeartbeat(
            node=self.node,
            role=Role.trainer,
            boot_id=self.boot_id,
            capacity=self.capacity,
            runs=refs,
            seq=self.seq,
            stopping=stopping,
        )
        self.bus.publish(NODES_HEARTBEATS, node_key(self.node, Role.trainer), beat).result()

    def _converge(self, run_id: str, held: DesiredAttempt, wanted: DesiredAttempt | None) -> None:
        current = wanted is not None and wanted.attempt == held.attempt
        mine = current and wanted is not None and wanted.accepted.get(0, run_id) == run_id
        wish = wanted.wish if wanted and mine else Wish.none
        if wish is not Wish.run:
            self.say(AttemptStopped, run_id, wish=wish)
            self.end(run_id)


class FakeRegistry:
    """Answers every publication; counts how often each was really made."""

    def __init__(self, bus: Bus, answer: Callable[[PublishArtifact], Message] | None = None) -> None:
        self.bus = bus
        self.answer = answer or self.publish
        self.asked: list[PublishArtifact] = []
        self.made: dict[str, ArtifactPin] = {}
        bus.subscribe(REGISTRY_COMMANDS, "registry", self.handle)

    def handle(self, records: object) -> None:
        for record in records:  # type: ignore[attr-defined]
            if isinstance(record.message, PublishArtifact):
                self.asked.append(record.message)
                self.bus.publish(REGISTRY_EVENTS, record.key, self.answer(record.message)).result()

    def publish(self, command: PublishArtifact) -> CommandDone:
        version = 1 + sum(pin.name == command.name for pin in self.made.values())
        key = manifest_key(command.tenant, command.name, version)
        pin = ArtifactPin(name=command.name, version=version, kind=command.kind, manifest_key=key)
        pin = self.made.setdefault(command.publication_id, pin)
        return CommandDone(
            command_id=command.id, publication_id=command.publication_id, job_id=command.job_id, artifact=pin
        )

    def register(self, name: str, kind: ArtifactKind, base: str = "", version: int = 1) -> ArtifactPin:
        """A version that was there before, on `registry.state`."""
        key = manifest_key("default", name, version)
        metadata = {"base_model": base} if base else {}
        state = ArtifactVersionState(
            name=name,
            version=version,
            kind=kind,
            manifest_key=key,
            manifest=Manifest(files=[], metadata=metadata),
            publication_id=uuid4().hex,
            created_at=datetime.now(UTC),
        )
        self.bus.publish(REGISTRY_STATE, version_key("default", name, version), state).result()
        return state.pin


class World:
    """One bus, one database, a scheduler that can be killed and built anew, and what its topics show."""

    def __init__(self, folder: Path, new_bus: Callable[[], Bus], **settings: object) -> None:
        self.new_bus = new_bus
        self.bus = new_bus()
        self.folder = folder
        self.settings = Settings(home=folder, **{"tick_s": 0.05, "backoff_s": 0.05, **settings})  # type: ignore[arg-type]
        self.doorbell = MemoryDoorbell()
        self.failures: list[BaseException] = []
        self.shown: dict[Topic, dict[str, Message]] = {}
        for topic in (JOBS_STATE, ATTEMPTS_DESIRED, DEPLOYMENTS_DESIRED):
            self.shown[topic] = {}
            self.bus.follow(topic, self._saw)
        self.buses: list[Bus] = [self.bus]
        self.service: Service | None = None

    def start_scheduler(self, bus: Bus | None = None) -> Service:
        engine = open_database(self.settings.effective_db_url("scheduler"))
        migrate(engine, "services.scheduler.migrations")
        self.leadership = leadership_of(self.settings, engine)
        assert self.leadership.acquire(threading.Event())
        epoch = take_over(engine)
        service = Service(
            self.settings, engine, bus or self.own_bus(), self.doorbell, epoch, on_failure=self.failures.append
        )
        service.start()
        self.service = service
        return service

    def stop_scheduler(self) -> None:
        if self.service:
            self.service.stop()
            self.leadership.release()
            self.service = None

    def own_bus(self) -> Bus:
        """A bus of one's own, as another process has one."""
        self.buses.append(self.new_bus())
        return self.buses[-1]

    def trainer(self, node: str = "n1", slots: int = 1, finish: bool = False) -> FakeTrainer:
        return FakeTrainer(self.own_bus(), node, slots, finish)

    def registry(self, answer: Callable[[PublishArtifact], Message] | None = None) -> FakeRegistry:
        return FakeRegistry(self.own_bus(), answer)

    def submit(self, **spec: object) -> str:
        job_id = uuid4().hex
        tenant = str(spec.pop("tenant", "default"))
        fields = {"type": "probe", "output": f"out-{job_id[:8]}", "output_kind": ArtifactKind.report, **spec}
        self.command(SubmitJob(job_id=job_id, tenant=tenant, spec=JobSpec.model_validate(fields)))
        return job_id

    def command(self, message: Message) -> None:
        self.bus.publish(JOBS_COMMANDS, message.job_id, message).result()  # type: ignore[attr-defined]

    def deploy(self, message: Message) -> None:
        self.bus.publish(DEPLOYMENTS_COMMANDS, f"{message.tenant}/{message.name}", message).result()  # type: ignore[attr-defined]

    def state(self, job_id: str) -> JobState | None:
        state = self.shown[JOBS_STATE].get(job_id)
        return state if isinstance(state, JobState) else None

    def until(self, job_id: str, status: str, timeout_s: float = 10) -> JobState:
        """The job's state once it has this status."""

        def there() -> JobState | None:
            state = self.state(job_id)
            return state if state and state.status == status else None

        try:
            state = eventually(there, timeout_s)
        except AssertionError:
            raise AssertionError(f"{job_id} is not {status} but {self.state(job_id)}; {self.failures}") from None
        assert state
        return state

    def desired(self, job_id: str) -> DesiredAttempt | None:
        wanted = self.shown[ATTEMPTS_DESIRED].get(job_id)
        return wanted if isinstance(wanted, DesiredAttempt) else None

    def close(self) -> None:
        self.stop_scheduler()
        close_all(self.buses)

    def _saw(self, record: Record) -> None:
        if record.message is None:
            self.shown[record.topic].pop(record.key, None)
        else:
            self.shown[record.topic][record.key] = record.message
