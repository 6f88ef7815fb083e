"""Artifacts: immutable, versioned, content-addressed. The registry's vocabulary."""

from __future__ import annotations

import re
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from shared.contracts.message import Message, Value


class ArtifactKind(StrEnum):
    model = "model"
    adapter = "adapter"
    dataset = "dataset"
    file = "file"
    checkpoint = "checkpoint"
    report = "report"

    @property
    def one(self) -> str:
        """`a model`, `an adapter`."""
        return f"{'an' if self.value[0] in 'aeiou' else 'a'} {self.value}"


NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
ALIAS_PATTERN = re.compile(r"[a-z][a-z0-9_-]{0,63}")


def check_name(name: str) -> str:
    """An artifact's name: letters, digits, `.`, `_`, `-`; at most 128. Raises ValueError."""
    if not NAME_PATTERN.fullmatch(name) or ".." in name:
        raise ValueError(
            f"{name!r} is no name: use at most 128 letters, digits, '.', '_' and '-', a letter or digit first"
        )
    return name


def check_alias(alias: str) -> str:
    """An alias such as `production`. `latest` is kept by the registry itself. Raises ValueError."""
    if not ALIAS_PATTERN.fullmatch(alias) or alias == "latest":
        raise ValueError(
            f"{alias!r} is no alias: use lower-case letters, digits, '_' and '-', a letter first; not 'latest'"
        )
    return alias


ArtifactName = Annotated[str, AfterValidator(check_name)]
Alias = Annotated[str, AfterValidator(check_alias)]


class ManifestFile(Value):
    """One file of a version. `path` is relative with `/`, never climbs; `sha256` is lower-case hex."""

    path: str
    size_bytes: int
    sha256: str


class Manifest(Value):
    """What a version is made of. Stored as JSON beside the blobs; never changes.

    In a run's staging folder the same form lies as `manifest.json`, written last, and each file lies beside it
    under `files/<path>`.
    """

    files: list[ManifestFile]
    metadata: dict[str, Any] = Field(default_factory=dict)
    """Free-form facts: base_model, task, params, metrics, licence, format, context_length …"""

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


class ArtifactPin(Value):
    """One immutable version and where its manifest lies in the object store."""

    name: str
    version: int
    kind: ArtifactKind
    manifest_key: str

    @property
    def ref(self) -> str:
        return f"{self.name}@{self.version}"


# Where things lie in the object store. Keys use '/', and every process derives them the same way.


def blob_key(sha256: str) -> str:
    return f"blobs/{sha256[:2]}/{sha256}"


def manifest_key(tenant: str, name: str, version: int) -> str:
    return f"manifests/{tenant}/{name}/{version}.json"


def run_prefix(job_id: str, attempt: int, run_id: str) -> str:
    """A run's own folder in staging: only that run writes there."""
    return f"staging/{job_id}/{attempt}/{run_id}"


def upload_prefix(upload_id: str) -> str:
    return f"staging/uploads/{upload_id}"


# Commands to the registry. Each is answered by CommandDone or CommandRejected on `registry.events`.


class PublishArtifact(Message):
    """Make a version out of a staged manifest. `publication_id` is unique: publishing it again changes nothing.

    Key on the bus: the artifact's `tenant/name`.
    """

    publication_id: str
    name: ArtifactName
    kind: ArtifactKind
    staged_prefix: str
    """The folder in staging that holds `manifest.json` and `files/`."""
    job_id: str | None = None
    parents: list[str] = Field(default_factory=list)
    """Refs (`name@version`) of what it was made from: data, base model."""
    aliases: list[Alias] = Field(default_factory=list)


class SetAlias(Message):
    """Move `alias` to `version`, or take it away with `version=None`."""

    name: ArtifactName
    alias: Alias
    version: int | None


class DeleteArtifact(Message):
    """Delete one version, or all of them with `version=None`. Others that share its blobs keep them."""

    name: ArtifactName
    version: int | None = None


class CommandDone(Message):
    """The registry has done what `command_id` asked."""

    command_id: str
    publication_id: str | None = None
    job_id: str | None = None
    artifact: ArtifactPin | None = None


class CommandRejected(Message):
    """The registry will not do what `command_id` asked. `retryable`: the same command may succeed later."""

    command_id: str
    publication_id: str | None = None
    job_id: str | None = None
    reason: str
    retryable: bool = False


# States on `registry.state`.


class ArtifactVersionState(Message):
    """One version. Key: `tenant/name@version`; a tombstone means deleted."""

    name: str
    version: int
    kind: ArtifactKind
    manifest_key: str
    manifest: Manifest
    publication_id: str
    job_id: str | None = None
    parents: list[str] = Field(default_factory=list)
    created_at: datetime

    @property
    def pin(self) -> ArtifactPin:
        return ArtifactPin(name=self.name, version=self.version, kind=self.kind, manifest_key=self.manifest_key)


class ArtifactAliasesState(Message):
    """Where the aliases of a name point; `latest` is among them. Key: `tenant/name`. `revision` only grows."""

    name: str
    aliases: dict[str, int]
    revision: int


def artifact_key(tenant: str, name: str) -> str:
    return f"{tenant}/{name}"


def version_key(tenant: str, name: str, version: int) -> str:
    return f"{tenant}/{name}@{version}"


def split_ref(ref: str) -> tuple[str, str | None]:
    """`name@3` → (`name`, `3`); `name@production` → (`name`, `production`); `name` → (`name`, None)."""
    name, at, which = ref.partition("@")
    return name, which if at else None
