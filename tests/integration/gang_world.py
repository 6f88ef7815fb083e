"""Two trainer nodes with real children on one bus, under a real scheduler, with one object store."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import psutil

from services.trainer.leftovers import RunFolder
from services.trainer.main import assemble
from services.trainer.spawn import RUN_ID_VARIABLE
from shared.contracts.artifacts import ArtifactKind, ArtifactPin, Manifest, ManifestFile, blob_key, manifest_key
from shared.contracts.jobs import AttemptStarted, LogLines, Progress, Resources, RunMessage
from shared.contracts.topics import ATTEMPTS_DESIRED, JOBS_EVENTS, JOBS_LOGS, Topic
from shared.settings import Settings
from tests.ground import Ground
from tests.integration.scheduler_world import FakeRegistry, World
from tests.waiting import eventually

M = TypeVar("M", bound=RunMessage)

NODES = ("n1", "n2")


class GangWorld(World):
    """A world whose trainers are real."""

    def __init__(self, folder: Path, ground: Ground, **settings: object) -> None:
        self.ground = ground
        super().__init__(folder, ground.bus, db_url=ground.new_database("scheduler"), **settings)
        self.store = ground.store()
        self.publications: FakeRegistry = self.registry()

    @contextmanager
    def node(self, name: str, **settings: object) -> Iterator[None]:
        """A trainer node, until the block ends."""
        given = {"heartbeat_s": 0.2, "stop_grace_s": 20, "node": name, "home": self.folder / name, **settings}
        bus = self.own_bus()
        runs = RunFolder(self.folder / name / "runs")
        agent, heartbeat = assemble(Settings.model_validate(given), bus, self.store, runs, uuid4().hex)
        thread = threading.Thread(target=agent.run, args=(30,), name=f"agent-{name}")
        thread.start()
        heartbeat.start()
        following = bus.follow(ATTEMPTS_DESIRED, agent.on_desired, agent.caught_up)
        try:
            yield
        finally:
            agent.shut_down()
            thread.join()
            following.close()
            heartbeat.say_farewell()

    @contextmanager
    def two_nodes(self, **settings: object) -> Iterator[GangWorld]:
        with ExitStack() as nodes:
            for name in NODES:
                nodes.enter_context(self.node(name, **settings))
            yield self

    def submit_gang(self, job_type: str, **spec: object) -> str:
        return self.submit(type=job_type, resources=Resources(nodes=2), **spec)

    def file(self, name: str, content: bytes, path: str = "data.txt") -> ArtifactPin:
        """Version 1 of a file artifact, as the registry leaves it in the store."""
        digest = hashlib.sha256(content).hexdigest()
        self.store.put_bytes(blob_key(digest), content)
        manifest = Manifest(files=[ManifestFile(path=path, size_bytes=len(content), sha256=digest)])
        key = manifest_key("default", name, 1)
        self.store.put_bytes(key, manifest.model_dump_json().encode())
        return ArtifactPin(name=name, version=1, kind=ArtifactKind.file, manifest_key=key)

    def said(self, topic: Topic, kind: type[M], job_id: str, attempt: int | None = None) -> list[M]:
        messages = self.ground.said(topic)
        found = [message for message in messages if isinstance(message, kind) and message.job_id == job_id]
        return [message for message in found if attempt in (None, message.attempt)]

    def events(self, kind: type[M], job_id: str, attempt: int | None = None) -> list[M]:
        return self.said(JOBS_EVENTS, kind, job_id, attempt)

    def progress(self, job_id: str, attempt: int | None = None) -> list[Progress]:
        return self.said(JOBS_LOGS, Progress, job_id, attempt)

    def lines(self, job_id: str) -> list[tuple[int, str]]:
        """Every line of the log with the rank that wrote it."""
        return [(said.rank, line) for said in self.said(JOBS_LOGS, LogLines, job_id) for line in said.lines]

    def child(self, job_id: str, attempt: int, rank: int) -> psutil.Process:
        """The child process of a rank, once it is announced."""

        def pid() -> int | None:
            started = self.events(AttemptStarted, job_id, attempt)
            return next((each.pid for each in started if each.rank == rank), None)

        return psutil.Process(eventually(pid, 30, f"rank {rank} of attempt {attempt}"))

    def children(self) -> list[psutil.Process]:
        """All that still run."""
        mine = psutil.Process().children(recursive=True)
        return [child for child in mine if RUN_ID_VARIABLE in _environment(child)]

    def output(self, job_id: str, name: str) -> dict[str, object]:
        """`training.json` of what the job has made."""
        state = self.state(job_id)
        assert state
        (pin,) = state.outputs
        (asked,) = [each for each in self.publications.asked if each.job_id == job_id]
        assert pin.name == asked.name
        found: dict[str, object] = json.loads(self.store.get_bytes(f"{asked.staged_prefix}/files/{name}"))
        return found


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ() if process.status() != psutil.STATUS_ZOMBIE else {}
    except psutil.Error:
        return {}
