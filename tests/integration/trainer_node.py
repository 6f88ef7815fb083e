"""A trainer node in this process: real agent, real child processes, on the ground that a test stands on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import psutil

from services.trainer.leftovers import RunFolder
from services.trainer.main import assemble
from shared.contracts.artifacts import ArtifactKind
from shared.contracts.jobs import DesiredAttempt, JobSpec, LogLines, Place, RunMessage, Wish
from shared.contracts.message import Message
from shared.contracts.nodes import NodeHeartbeat
from shared.contracts.topics import ATTEMPTS_DESIRED, JOBS_EVENTS, JOBS_LOGS, NODES_HEARTBEATS, Topic
from shared.settings import Settings
from shared.store.port import ObjectStore
from tests.ground import Ground
from tests.waiting import eventually

M = TypeVar("M", bound=Message)

NODE = "here"


class TrainerNode:
    """What a test wishes, and what the node said."""

    def __init__(self, home: Path, ground: Ground, store: ObjectStore | None = None, **settings: Any) -> None:
        self.ground = ground
        self.bus = ground.bus()
        self.store = store or ground.store()
        given = {"stop_grace_s": 20, "heartbeat_s": 0.2, "node": NODE, "home": home, **settings}
        self.settings = Settings(**given)
        self.runs = home / "trainer" / NODE / "runs"
        self._versions = 0

    @contextmanager
    def running(self, farewell_s: float = 30) -> Iterator[TrainerNode]:
        agent, heartbeat = assemble(self.settings, self.bus, self.store, RunFolder(self.runs), uuid4().hex)
        thread = threading.Thread(target=agent.run, args=(farewell_s,), name="agent")
        thread.start()
        heartbeat.start()
        following = self.bus.follow(ATTEMPTS_DESIRED, agent.on_desired, agent.caught_up)
        try:
            yield self
        finally:
            agent.shut_down()
            thread.join()
            following.close()
            heartbeat.say_farewell()

    def wish(self, job_id: str, attempt: int = 1, wish: Wish = Wish.run, **changes: Any) -> DesiredAttempt:
        """Publish a DesiredAttempt; `changes` are its other fields, `params` and `inputs` those of its spec."""
        self._versions += 1
        spec = JobSpec(
            type=changes.pop("type", "probe"),
            params=changes.pop("params", {}),
            inputs=changes.pop("inputs", {}),
            output="thing",
            output_kind=ArtifactKind.report,
        )
        desired = DesiredAttempt(
            job_id=job_id,
            attempt=attempt,
            version=self._versions,
            spec=spec,
            places=changes.pop("places", [Place(node=NODE)]),
            wish=wish,
            **changes,
        )
        self.bus.publish(ATTEMPTS_DESIRED, job_id, desired).result()
        return desired

    def rewish(self, desired: DesiredAttempt, **changes: Any) -> DesiredAttempt:
        """The same attempt with other fields."""
        self._versions += 1
        changed = desired.changed(version=self._versions, **changes)
        self.bus.publish(ATTEMPTS_DESIRED, desired.job_id, changed).result()
        return changed

    def forget(self, job_id: str) -> None:
        self.bus.publish(ATTEMPTS_DESIRED, job_id, None).result()

    def said(self, topic: Topic, kind: type[M], job_id: str | None = None) -> list[M]:
        found = [message for message in self.ground.said(topic) if isinstance(message, kind)]
        return [message for message in found if job_id in (None, getattr(message, "job_id", None))]

    def events(self, job_id: str) -> list[RunMessage]:
        return self.said(JOBS_EVENTS, RunMessage, job_id)

    def logs(self, kind: type[M], job_id: str) -> list[M]:
        return self.said(JOBS_LOGS, kind, job_id)

    def heartbeats(self) -> list[NodeHeartbeat]:
        return self.said(NODES_HEARTBEATS, NodeHeartbeat)

    def await_event(self, kind: type[M], job_id: str, attempt: int = 1, timeout_s: float = 30) -> M:
        def found() -> M | None:
            return next((event for event in self.said(JOBS_EVENTS, kind, job_id) if of(event) == attempt), None)

        def of(event: Message) -> int:
            return int(getattr(event, "attempt", 0))

        event = eventually(found, timeout_s, f"{kind.__name__} of {job_id}/{attempt} in {self.events(job_id)}")
        assert event
        return event

    def await_log(self, line: str, job_id: str) -> None:
        eventually(
            lambda: any(line in said for lines in self.logs(LogLines, job_id) for said in lines.lines),
            30,
            f"{line!r} in the log of {job_id}",
        )


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
