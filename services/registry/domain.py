"""What may be published, under which version, and where the aliases point. Pure rules, no I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

from shared.contracts.artifacts import ArtifactKind, Manifest, PublishArtifact
from shared.contracts.message import MAX_MESSAGE_BYTES

LATEST = "latest"
WEIGHTS = frozenset({ArtifactKind.model, ArtifactKind.adapter})
PICKLES = frozenset({".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill"})
"""Python objects: reading one runs what it says. Only a checkpoint may hold them (README.md says why)."""
NOT_WEIGHTS = PICKLES | {".bin", ".npz", ".h5", ".keras", ".onnx", ".gguf", ".msgpack", ".py", ".pyc", ".so", ".dll"}
"""What a model or an adapter may not hold: weights in any form but safetensors, and code."""
MAGIC = {
    b"PK\x03\x04": "a zip archive, as torch.save writes",
    b"PK\x05\x06": "a zip archive",
    b"\x7fELF": "a program",
    b"\x89HDF": "an HDF5 file",
    b"GGUF": "a GGUF file",
}
PICKLE = re.compile(rb"\x80[\x02-\x05]|\(?c[A-Za-z_][\w.]*\r?\n[A-Za-z_][\w.]*\r?\n")
"""How pickles of protocol 2 and up begin, and those of protocol 0 that name a global first."""
HEAD_BYTES = 512


class Refused(Exception):
    """The command will not be done; the message is one sentence that names why."""


@dataclass(frozen=True)
class Artifact:
    """One name. `versions` are those not deleted; `last_version` was given out last and is never given again."""

    tenant: str
    name: str
    kind: ArtifactKind
    last_version: int = 0
    revision: int = 0
    versions: frozenset[int] = frozenset()
    aliases: Mapping[str, int] | None = None

    def with_version(self, version: int, kind: ArtifactKind, aliases: Iterable[str]) -> Artifact:
        """`version` is there now; `latest` moves up to it, `aliases` move to it."""
        moved = {**(self.aliases or {}), **dict.fromkeys(aliases, version)}
        return _pointing(replace(self, kind=kind, versions=self.versions | {version}), moved)

    def resolve(self, version: int | None) -> frozenset[int]:
        """The versions to delete: that one, or all. Raises Refused for one that never was."""
        if version is None:
            return self.versions
        if not 1 <= version <= self.last_version:
            raise Refused(f"{self.name}@{version} is not there; it has versions up to {self.last_version}")
        return self.versions & {version}

    def without(self, versions: frozenset[int]) -> Artifact:
        """`versions` are gone, and the aliases that pointed there."""
        left = self.versions - versions
        kept = {alias: to for alias, to in (self.aliases or {}).items() if to in left}
        return _pointing(replace(self, versions=left), kept)

    def with_alias(self, alias: str, version: int | None) -> Artifact:
        """`alias` points to `version`, or is gone. Raises Refused where that version is not there."""
        if alias == LATEST:
            raise Refused("'latest' always is the newest version; choose another alias")
        others = {name: to for name, to in (self.aliases or {}).items() if name != alias}
        if version is None:
            return _pointing(self, others)
        if version not in self.versions:
            raise Refused(f"{self.name}@{version} is not there, so the alias {alias!r} cannot point to it")
        return _pointing(self, {**others, alias: version})


def _pointing(artifact: Artifact, aliases: Mapping[str, int]) -> Artifact:
    """Its aliases are these, and `latest` is the newest version; the revision grows when that changes anything."""
    others = {alias: to for alias, to in aliases.items() if alias != LATEST}
    wanted = {**others, LATEST: max(artifact.versions)} if artifact.versions else {}
    changed = wanted != dict(artifact.aliases or {})
    return replace(artifact, aliases=wanted, revision=artifact.revision + changed)


def check_kind(artifact: Artifact | None, kind: ArtifactKind) -> None:
    """A name keeps its kind while it has versions. Raises Refused."""
    if artifact and artifact.versions and artifact.kind is not kind:
        raise Refused(f"{artifact.name!r} holds versions of kind {artifact.kind}; publish this {kind} by another name")


def check_staged_prefix(prefix: str) -> None:
    """Only what lies in staging can be published. Raises Refused."""
    if not prefix.startswith("staging/") or ".." in prefix.split("/"):
        raise Refused(f"{prefix!r} is not in staging, so nothing can be published from there")


def check_files(kind: ArtifactKind, manifest: Manifest) -> None:
    """The manifest's files by their names alone. Raises Refused."""
    if not manifest.files:
        raise Refused("the manifest lists no file; a version has at least one")
    paths = {file.path for file in manifest.files}
    for path in sorted(paths):
        for folder in PurePosixPath(path).parents:
            if str(folder) in paths:
                raise Refused(f"{str(folder)!r} is a file and a folder at once")
        _check_suffix(kind, path)


def _check_suffix(kind: ArtifactKind, path: str) -> None:
    suffix = PurePosixPath(path).suffix.lower()
    if kind in WEIGHTS and suffix in NOT_WEIGHTS:
        raise Refused(f"{path!r} may run code when it is loaded; save weights as .safetensors and leave it out")
    if kind is not ArtifactKind.checkpoint and suffix in PICKLES:
        raise Refused(f"{path!r} is a pickle, which runs code when it is loaded; only a checkpoint may hold one")


def check_content(kind: ArtifactKind, path: str, head: bytes) -> None:
    """A file by its first HEAD_BYTES, whatever its name says. Raises Refused."""
    if kind not in WEIGHTS:
        return
    for magic, what in MAGIC.items():
        if head.startswith(magic):
            raise Refused(f"{path!r} is {what}, whatever its name says; save weights as .safetensors")
    if head[257:262] == b"ustar":
        raise Refused(f"{path!r} is a tar archive, whatever its name says; save weights as .safetensors")
    if PICKLE.match(head):
        raise Refused(f"{path!r} is a pickle, whatever its name says; save weights as .safetensors")


def enriched(manifest: Manifest, command: PublishArtifact, version: int, created_at: datetime) -> Manifest:
    """The manifest as it is kept for ever: with who made it when, from what. Raises Refused when it is too large."""
    origin: dict[str, Any] = {
        "tenant": command.tenant,
        "name": command.name,
        "version": version,
        "kind": command.kind.value,
        "created": created_at.isoformat(),
        "job": command.job_id,
        "parents": command.parents,
    }
    return Manifest(files=manifest.files, metadata={**manifest.metadata, **origin})


def check_manifest_size(size_bytes: int) -> None:
    """A version's state travels on the bus. Raises Refused."""
    if size_bytes > MAX_MESSAGE_BYTES:
        raise Refused(
            f"the manifest has {size_bytes} bytes, more than {MAX_MESSAGE_BYTES}: pack the files into fewer ones"
        )
