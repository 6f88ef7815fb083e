"""Taking a backup while the system runs: SQL first, then the objects that it may refer to.

Manifests and blobs are written before SQL refers to them and never change, so that all of them are still there when the
dumps are done; what came in between is harmless extra. Should a version have been deleted meanwhile and its blobs with
it, the dumps are of yesterday: they are made again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from shared.backup.copying import Progress, side_by_side
from shared.backup.index import Entry, read_store, write_index
from shared.backup.place import INDEX, Backup, Part, Place, copy_verified
from shared.backup.rows import write_rows
from shared.backup.system import SERVICES, System, registrys_knowledge, revision_of
from shared.contracts.artifacts import ArtifactVersionState, blob_key
from shared.store.port import ObjectNotFound
from shared.version import installed_version

ROUNDS = 3


@dataclass(frozen=True)
class Taken:
    """A backup, and what of it was copied just now."""

    backup: Backup
    copied_objects: int
    copied_bytes: int


@dataclass(frozen=True)
class Dumps:
    """The databases in the place, and the versions that the registry's holds."""

    parts: dict[str, Part]
    rows: dict[str, int]
    versions: list[ArtifactVersionState]


def take(system: System, place: Place, progress: Progress) -> Taken:
    """A new backup in the place, whole once this returns. Begun again after it broke off, it copies only the rest.

    Raises BackupError, StoreError, SettingsError.
    """
    taken_at = datetime.now(UTC)
    backup_id = place.new_id(taken_at)
    copied = Copied()
    for attempt in range(1, ROUNDS + 1):
        dumps = _dump(system, place, backup_id, progress)
        entries = _copy_objects(system, place, copied, progress)
        broken = _broken(dumps.versions, entries)
        if attempt == ROUNDS or not broken or copied.corrupt:
            break
        progress.step("something was deleted meanwhile: saves the databases again")
    with place.writer(backup_id, INDEX) as file:
        write_index(entries, file)
    backup = Backup(
        id=backup_id,
        taken_at=taken_at,
        version=installed_version(),
        databases=dumps.parts,
        rows=dumps.rows,
        index=file.part,
        objects=len(entries),
        size_bytes=sum(entry.size_bytes for entry in entries),
        broken=broken,
    )
    place.seal(backup)
    return Taken(backup, copied.objects, copied.size_bytes)


class Copied:
    """What this run has brought into the place, and what of the store is not what its name says."""

    def __init__(self) -> None:
        self.objects = 0
        self.size_bytes = 0
        self.corrupt: set[str] = set()


def _dump(system: System, place: Place, backup_id: str, progress: Progress) -> Dumps:
    parts, rows, versions = dict[str, Part](), dict[str, int](), list[ArtifactVersionState]()
    for service in SERVICES:
        progress.step(f"saves the {service}'s database")
        with system.snapshot(service) as sql, place.writer(backup_id, f"{service}.rows") as file:
            rows[service] = write_rows(sql, service, revision_of(sql, service), file)
            if service == "registry":
                versions = list(registrys_knowledge().artifacts(sql))
        parts[service] = file.part
    return Dumps(parts, rows, versions)


def _copy_objects(system: System, place: Place, copied: Copied, progress: Progress) -> list[Entry]:
    """Bring over what the place has not; the entries that it has then."""
    progress.step("looks what is in the object store")
    entries = list(read_store(system.store))
    kept = place.blobs()
    new = {entry.sha256: entry for entry in reversed(entries) if kept.get(entry.sha256) != entry.size_bytes}
    progress.step(f"copies {len(new)} objects", sum(entry.size_bytes for entry in new.values()))

    def copy(entry: Entry) -> str:
        try:
            whole = copy_verified(
                system.store, entry.key, place.store, blob_key(entry.sha256), entry.sha256, progress.moved
            )
        except ObjectNotFound:
            return "gone"
        return "" if whole else "corrupt"

    lost: set[str] = set()
    for entry, problem in side_by_side(copy, new.values()):
        if problem:
            lost.add(entry.sha256)
            copied.corrupt |= {entry.key} if problem == "corrupt" else set()
        else:
            copied.objects += 1
            copied.size_bytes += entry.size_bytes
    return [entry for entry in entries if entry.sha256 not in lost]


def _broken(versions: Iterable[ArtifactVersionState], entries: Iterable[Entry]) -> list[str]:
    """Versions that are not whole in the place."""
    there = {entry.key: entry.size_bytes for entry in entries}
    return sorted(
        f"{state.tenant}/{state.pin.ref}"
        for state in versions
        if state.manifest_key not in there
        or any(there.get(blob_key(file.sha256)) != file.size_bytes for file in state.manifest.files)
    )
