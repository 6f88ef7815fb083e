"""What arrives on the bus, one method a topic. Returning acknowledges the batch; it was committed by then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import UnionType

from services.scheduler.clock import Clock
from services.scheduler.deployments import Artifacts, Deployment, GivenUp, changed_spec, undeployed
from services.scheduler.domain import Job, new_job, undecodable_job
from services.scheduler.ledger import Ledger
from services.scheduler.liveness import Liveness
from services.scheduler.truth import Work
from shared.bus.port import BrokenRecord, Poison, Record
from shared.contracts.artifacts import ArtifactVersionState, CommandDone, CommandRejected
from shared.contracts.deployments import Deploy, ReplicaStatus, Scale, Undeploy, deployment_key
from shared.contracts.jobs import CancelJob, PauseJob, ResumeJob, RunMessage, SubmitJob
from shared.contracts.message import Message
from shared.contracts.nodes import NodeHeartbeat
from shared.contracts.topics import ATTEMPTS_DESIRED

JobCommand = SubmitJob | CancelJob | PauseJob | ResumeJob
DeploymentCommand = Deploy | Scale | Undeploy


class Handlers:
    """Each batch is one decision of the ledger. `wake` has the reconciler look at what became possible."""

    def __init__(
        self,
        ledger: Ledger,
        liveness: Liveness,
        artifacts: Artifacts,
        given_up: GivenUp,
        wake: Callable[[], None],
    ) -> None:
        self._ledger = ledger
        self._liveness = liveness
        self._artifacts = artifacts
        self._given_up = given_up
        self._wake = wake

    @property
    def _clock(self) -> Clock:
        return self._ledger.clock

    # ── jobs.commands ──

    def job_commands(self, records: Sequence[Record]) -> None:
        _refuse_strangers(records, JobCommand)
        commands = [record.message for record in records if isinstance(record.message, JobCommand)]
        with self._ledger.decide() as work:
            jobs = work.jobs({command.job_id for command in commands})
            handled = work.already_handled({command.id for command in commands})
            early = work.cancelled_early({command.job_id for command in commands})
            for command in commands:
                if command.id in handled:
                    continue
                handled.add(command.id)
                work.mark_handled(command.id, self._clock.now())
                job = jobs.get(command.job_id)
                if job is not None:
                    jobs[job.id] = self._ledger.tell(work, job, command)
                elif isinstance(command, SubmitJob):
                    jobs[command.job_id] = self._submit(work, command, cancelled=command.job_id in early)
                elif isinstance(command, CancelJob):
                    early.add(command.job_id)
                    work.remember_cancel(command.job_id, self._clock.now())
        self._wake()

    def _submit(self, work: Work, command: SubmitJob, cancelled: bool) -> Job:
        job = new_job(command, self._clock.now())
        self._ledger.add(work, job)
        if cancelled:
            return self._ledger.tell(work, job, CancelJob(job_id=job.id, tenant=job.tenant))
        return job

    def broken_job_command(self, record: BrokenRecord) -> None:
        """A submission nobody can read still becomes a job that says so."""
        envelope = record.envelope
        if envelope is not None and envelope.type != SubmitJob.__name__:
            return
        with self._ledger.decide() as work:
            if work.jobs([record.key]):
                return
            tenant = envelope.tenant if envelope else "default"
            spec = envelope.body.get("spec") if envelope else None
            job_type = spec.get("type") if isinstance(spec, dict) else None
            name = job_type if isinstance(job_type, str) else "unknown"
            self._ledger.add(work, undecodable_job(record.key, tenant, name, record.reason, self._clock.now()))

    # ── jobs.events and registry.events ──

    def job_events(self, records: Sequence[Record]) -> None:
        self._tell_jobs([(said.job_id, said) for record in records if isinstance(said := record.message, RunMessage)])

    def registry_events(self, records: Sequence[Record]) -> None:
        answers = (record.message for record in records)
        self._tell_jobs([(said.job_id, said) for said in answers if isinstance(said, CommandDone | CommandRejected)])

    def _tell_jobs(self, said: list[tuple[str | None, Message]]) -> None:
        if not said:
            return
        with self._ledger.decide() as work:
            jobs = work.jobs({job_id for job_id, _ in said if job_id})
            for job_id, message in said:
                if job_id in jobs:
                    jobs[job_id] = self._ledger.tell(work, jobs[job_id], message)
                elif job_id and isinstance(message, RunMessage):
                    # Nobody knows this job (any more): its worker is to hear so.
                    work.mark(ATTEMPTS_DESIRED, job_id, self._clock.now())
        self._wake()

    # ── deployments.commands ──

    def deployment_commands(self, records: Sequence[Record]) -> None:
        _refuse_strangers(records, DeploymentCommand)
        commands = [record.message for record in records if isinstance(record.message, DeploymentCommand)]
        with self._ledger.decide() as work:
            handled = work.already_handled({command.id for command in commands})
            for command in commands:
                if command.id in handled:
                    continue
                handled.add(command.id)
                work.mark_handled(command.id, self._clock.now())
                before = work.deployment(deployment_key(command.tenant, command.name))
                after = deployed(before, command)
                self._ledger.trace(type(command).__name__, command.traceparent, deployment=command.name)
                if after is not None and after is not before:
                    self._ledger.set_deployment(work, after)
        self._wake()

    # ── What is followed: registry.state, deployments.status and nodes.heartbeats ──

    def registry_state(self, record: Record) -> None:
        version = record.message
        if version is None or isinstance(version, ArtifactVersionState):
            self._artifacts.saw(record.key, version)
            self._wake()

    def registry_caught_up(self) -> None:
        self._artifacts.caught_up = True
        self._wake()

    def replica_status(self, record: Record) -> None:
        """Remembered, not written down: the next look writes what follows, and the topic shows it until then."""
        status = record.message
        if (status is None or isinstance(status, ReplicaStatus)) and self._given_up.saw(record.key, status):
            self._wake()

    def heartbeat(self, record: Record) -> None:
        if isinstance(record.message, NodeHeartbeat):
            self._liveness.heard(record.message)


def _refuse_strangers(records: Sequence[Record], kinds: UnionType) -> None:
    """Raises Poison for the first message that does not belong on its topic."""
    for record in records:
        if not isinstance(record.message, kinds):
            raise Poison(record, f"{type(record.message).__name__} does not belong on {record.topic.name}")


def deployed(before: Deployment | None, command: DeploymentCommand) -> Deployment | None:
    """The deployment after the command. Scaling or removing what is not there changes nothing."""
    match command:
        case Deploy():
            new = Deployment(
                tenant=command.tenant, name=command.name, traceparent=command.traceparent, spec=command.spec
            )
            return new if before is None else changed_spec(before, command.spec)
        case Scale() if before and not before.deleted:
            return changed_spec(before, before.spec.changed(replicas=command.replicas))
        case Undeploy() if before:
            return undeployed(before)
    return before
