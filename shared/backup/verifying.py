"""Whether every artifact is whole: each manifest is the one in SQL, each file of it has its hash."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from shared.backup.copying import Progress, side_by_side
from shared.backup.errors import Damaged
from shared.backup.index import Entry, read_index
from shared.backup.place import INDEX, Backup, Place, hash_of
from shared.backup.rows import read_header
from shared.backup.system import System, registrys_knowledge, revision_of
from shared.contracts.artifacts import ArtifactVersionState, blob_key
from shared.store.port import CorruptArtifact, ObjectNotFound, ObjectStore
from shared.store.staging import read_manifest


@dataclass(frozen=True)
class Broken:
    """What is not whole, and why."""

    what: str
    problem: str


@dataclass
class Verified:
    """What was looked at, and what is wrong with it."""

    artifacts: int = 0
    files: int = 0
    size_bytes: int = 0
    broken: list[Broken] = field(default_factory=list)


def verify_system(system: System, progress: Progress) -> Verified:
    """Every version that the registry knows, read whole; equal files once. Raises BackupError, StoreError."""
    with system.snapshot("registry") as sql:
        revision_of(sql, "registry")
        versions = list(registrys_knowledge().artifacts(sql))
    sizes = {file.sha256: file.size_bytes for state in versions for file in state.manifest.files}
    problems = _check_blobs(system.store, sizes, progress)
    verified = Verified(len(versions), sum(len(state.manifest.files) for state in versions), sum(sizes.values()))
    for state, problem in side_by_side(lambda state: _check_manifest(system.store, state), versions):
        name = f"{state.tenant}/{state.pin.ref}"
        found = [problem] if problem else []
        found += [f"{file.path}: {problems[file.sha256]}" for file in state.manifest.files if file.sha256 in problems]
        verified.broken += [Broken(name, each) for each in found]
    return verified


def verify_backup(place: Place, backup: Backup, progress: Progress) -> Verified:
    """Every byte of a backup. Raises BackupError, StoreError."""
    with place.local(backup) as folder:
        for service in backup.databases:
            read_header(folder / f"{service}.rows")
        entries = read_index(folder / INDEX)
    sizes = {entry.sha256: entry.size_bytes for entry in entries}
    problems = _check_blobs(place.store, sizes, progress)
    broken = [Broken(entry.key, problems[entry.sha256]) for entry in entries if entry.sha256 in problems]
    broken += [Broken(name, "it was not whole when the backup was taken") for name in backup.broken]
    return Verified(
        sum(entry.key.startswith("manifests/") for entry in entries), len(entries), sum(sizes.values()), broken
    )


def check_whole(place: Place, folder: Path) -> list[Entry]:
    """The index of a backup, each of whose objects is there in its size. Raises Damaged before anything is restored."""
    entries, kept = read_index(folder / INDEX), place.blobs()
    missing = [entry for entry in entries if kept.get(entry.sha256) != entry.size_bytes]
    if missing:
        raise Damaged(
            f"the backup in {place.name} is not whole: {len(missing)} of its {len(entries)} objects are missing or cut "
            f"off, {missing[0].key} among them"
        )
    return entries


def _check_blobs(store: ObjectStore, sizes: dict[str, int], progress: Progress) -> dict[str, str]:
    """What is wrong, by hash."""
    progress.step(f"reads {len(sizes)} files", sum(sizes.values()))

    def check(sha256: str) -> str:
        try:
            return "" if hash_of(store, blob_key(sha256), progress.moved) == sha256 else "its sha256 differs"
        except ObjectNotFound:
            return "it is missing"

    return {sha256: problem for sha256, problem in side_by_side(check, sizes) if problem}


def _check_manifest(store: ObjectStore, state: ArtifactVersionState) -> str:
    try:
        manifest = read_manifest(store, state.manifest_key)
    except ObjectNotFound:
        return "its manifest is missing"
    except CorruptArtifact as error:
        return str(error)
    return "" if manifest.files == state.manifest.files else "its manifest is another than the registry's"
