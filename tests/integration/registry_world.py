"""A registry among real parts, and what a client of it sees on the bus."""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from uuid import uuid4

from services.registry.main import Service
from shared.bus.port import Bus, Record
from shared.contracts.artifacts import (
    ArtifactAliasesState,
    ArtifactKind,
    ArtifactVersionState,
    CommandDone,
    CommandRejected,
    DeleteArtifact,
    PublishArtifact,
    SetAlias,
    run_prefix,
)
from shared.contracts.message import Message
from shared.contracts.topics import REGISTRY_COMMANDS, REGISTRY_EVENTS, REGISTRY_STATE
from shared.db import migrate, open_database
from shared.store.port import ObjectStore
from shared.store.staging import stage_folder
from tests.waiting import eventually

Answer = CommandDone | CommandRejected
Files = Mapping[str, bytes]


def tensors(data: bytes = b"\0" * 16) -> bytes:
    """A sound safetensors file with one tensor of bytes."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}}).encode()
    return struct.pack("<Q", len(header)) + header + data


def start_registry(folder: Path, store: ObjectStore, bus: Bus, db_url: str = "") -> Service:
    """As `python -m services.registry` does, in this process. By default its database is a file in the folder."""
    engine = open_database(db_url or f"sqlite:///{folder / 'registry.sqlite'}")
    migrate(engine, "services.registry.migrations")
    service = Service(engine, store, bus)
    service.start()
    return service


class Client:
    """Stages, commands and watches, as trainer, scheduler and gateway do."""

    def __init__(self, store: ObjectStore, bus: Bus, folder: Path) -> None:
        self.store = store
        self.bus = bus
        self.folder = folder
        self.answers: dict[str, list[Answer]] = {}
        self.states: dict[str, Message] = {}
        self.caught_up = threading.Event()
        bus.subscribe(REGISTRY_EVENTS, f"test-{uuid4().hex}", self._answered)
        bus.follow(REGISTRY_STATE, self._saw, self.caught_up.set)

    def _answered(self, records: object) -> None:
        for record in records:  # type: ignore[attr-defined]
            if isinstance(record.message, CommandDone | CommandRejected):
                self.answers.setdefault(record.message.command_id, []).append(record.message)

    def _saw(self, record: Record) -> None:
        if record.message is None:
            self.states.pop(record.key, None)
        else:
            self.states[record.key] = record.message

    def stage(self, files: Files, **metadata: object) -> str:
        """The prefix where a run has staged them."""
        run = uuid4().hex
        source = self.folder / f"staged-{run}"
        for path, data in files.items():
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            (source / path).write_bytes(data)
        prefix = run_prefix(f"job-{run}", 1, run) + "/outputs/out"
        stage_folder(self.store, prefix, source, dict(metadata))
        return prefix

    def send(self, command: PublishArtifact | SetAlias | DeleteArtifact) -> str:
        self.bus.publish(REGISTRY_COMMANDS, f"{command.tenant}/{command.name}", command).result(10)
        return command.id

    def answer(self, command_id: str, timeout_s: float = 20) -> Answer:
        return eventually(lambda: self.answers.get(command_id, []), timeout_s, "an answer of the registry")[0]

    def publish(
        self, name: str, files: Files | str, kind: ArtifactKind = ArtifactKind.report, **fields: object
    ) -> Answer:
        return self.answer(self.send(self.publication(name, files, kind, **fields)))

    def publication(self, name: str, files: Files | str, kind: ArtifactKind, **fields: object) -> PublishArtifact:
        prefix = files if isinstance(files, str) else self.stage(files)
        fields = {"publication_id": uuid4().hex, **fields}
        return PublishArtifact.model_validate({"name": name, "kind": kind, "staged_prefix": prefix, **fields})

    def published(self, name: str, files: Files | str, **fields: object) -> CommandDone:
        answer = self.publish(name, files, **fields)  # type: ignore[arg-type]
        assert isinstance(answer, CommandDone), answer
        return answer

    def refused(self, name: str, files: Files | str, **fields: object) -> str:
        answer = self.publish(name, files, **fields)  # type: ignore[arg-type]
        assert isinstance(answer, CommandRejected), answer
        assert not answer.retryable
        return answer.reason

    def aliases(self, name: str, tenant: str = "default") -> dict[str, int]:
        state = self.states.get(f"{tenant}/{name}")
        return dict(state.aliases) if isinstance(state, ArtifactAliasesState) else {}

    def versions(self, name: str, tenant: str = "default") -> dict[int, ArtifactVersionState]:
        found = [state for state in self.states.values() if isinstance(state, ArtifactVersionState)]
        return {state.version: state for state in found if (state.tenant, state.name) == (tenant, name)}

    def sees(self, condition: Callable[[], bool], what: str = "") -> None:
        eventually(condition, 20, what)
