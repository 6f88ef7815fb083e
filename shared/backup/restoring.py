"""Restoring a backup: objects first, SQL last, so that no row is there before what it refers to.

Nothing is changed before the whole backup was looked at and the system found empty. Each database is one transaction.
The bus begins empty: scheduler and registry fill its compacted topics from the truth when they start, outboxes and
submissions go out again, and each service's `settle` makes its rows fit.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import func, select

from shared.backup.copying import Progress, side_by_side
from shared.backup.errors import Damaged, Occupied, Unusable
from shared.backup.index import BLOBS, MANIFESTS, STAGING, Entry
from shared.backup.place import Backup, Place, copy_verified, hash_of
from shared.backup.rows import drop_everything, load_rows, read_header, tables_of
from shared.backup.system import SERVICES, SETTLING_ORDER, Restored, System, knowledge_of
from shared.backup.verifying import check_whole
from shared.contracts.artifacts import blob_key
from shared.db import newest_version, upgrade
from shared.db.locks import hold

OWN = {"leader", "api_keys"}
"""Tables that are not empty once a service was started on them, though nothing was done with it."""


@dataclass(frozen=True)
class Done:
    """What was restored."""

    backup: Backup
    copied_objects: int
    rows: dict[str, int]


def restore(
    system: System, place: Place, backup: Backup, clear_bus: Callable[[], None], replace: bool, progress: Progress
) -> Done:
    """Make the system what it was. Raises BackupError, StoreError.

    `clear_bus` is called once nothing stands in the way any more.
    `replace`: what is in the databases goes; of the object store, what the backup has under the same key.
    """
    progress.step("looks through the backup")
    with place.local(backup) as folder:
        for service in SERVICES:
            _check_revision(service, read_header(folder / f"{service}.rows").revision)
        entries = check_whole(place, folder)
        check_free(system)
        system.store.prepare()
        if not replace:
            check_empty(system, entries)
        copied = _copy_back(system, place, entries, progress)
        clear_bus()
        restored = Restored(backup.taken_at.timestamp())
        rows = {service: _load(system, service, folder, restored, progress) for service in SETTLING_ORDER}
    return Done(backup, copied, rows)


def check_free(system: System) -> None:
    """Raises Occupied while somebody is connected."""
    for service in SERVICES:
        if others := system.others(service):
            raise Occupied(
                f"others have the {service}'s database open ({others} of them): stop all services first, also "
                "containers that were started one by one (`docker ps`), and start them when the restore is done"
            )


def check_empty(system: System, entries: list[Entry]) -> None:
    """Raises Occupied, saying what is there. What a restore that broke off has brought already is not in the way."""
    for service in SERVICES:
        with system.snapshot(service) as sql:
            tables = [table for table in tables_of(sql) if table.name not in OWN]
            count = sum(sql.scalar(select(func.count()).select_from(table)) or 0 for table in tables)
        if count:
            raise Occupied(
                f"the system is not empty: the {service}'s database holds {count} rows. To put the backup in the "
                "place of all that is there, or to go on after a restore that broke off, add --replace"
            )
    ours = {entry.key: entry.size_bytes for entry in entries}
    for prefix in (BLOBS, MANIFESTS, STAGING):
        for found in system.store.list(prefix):
            if ours.get(found.key) != found.size_bytes:
                raise Occupied(
                    f"the system is not empty: its object store holds {found.key}, which is not of this backup. To "
                    "restore into it all the same, add --replace"
                )


def _check_revision(service: str, revision: str) -> None:
    newest = newest_version(_migrations(service))
    if revision > newest:
        raise Unusable(
            f"the backup is of a newer release: the {service}'s database is at {revision}, and this one knows {newest}"
        )


def _copy_back(system: System, place: Place, entries: list[Entry], progress: Progress) -> int:
    """Manifests last, as they are written. Raises Damaged for an object that is not what it was."""
    progress.step(f"copies {len(entries)} objects", sum(entry.size_bytes for entry in entries))

    def copy(entry: Entry) -> bool:
        if _is_there(system, entry, progress):
            return False
        key = blob_key(entry.sha256)
        if not copy_verified(place.store, key, system.store, entry.key, entry.sha256, progress.moved):
            raise Damaged(f"{key} of the backup in {place.name} is not what was saved: its sha256 differs")
        return True

    return sum(new for _, new in side_by_side(copy, sorted(entries, key=lambda entry: entry.key.startswith(MANIFESTS))))


def _is_there(system: System, entry: Entry, progress: Progress) -> bool:
    """Brought by a restore that broke off, or never lost: by what it holds, not by its name."""
    there = system.store.stat(entry.key)
    if there is None or there.size_bytes != entry.size_bytes:
        return False
    same = hash_of(system.store, entry.key, lambda _: None) == entry.sha256
    if same:
        progress.moved(entry.size_bytes)
    return same


def _load(system: System, service: str, folder: Path, restored: Restored, progress: Progress) -> int:
    """The rows into a schema of their own revision, which is then brought up to date."""
    progress.step(f"restores the {service}'s database")
    path = folder / f"{service}.rows"
    with system.writing(service) as sql:
        hold(sql, "migrate")
        drop_everything(sql)
        upgrade(sql, _migrations(service), read_header(path).revision)
        for table in tables_of(sql):  # what the migrations put there themselves
            sql.execute(table.delete())
        rows = load_rows(sql, path)
        upgrade(sql, _migrations(service))
        knowledge_of(service).settle(sql, restored)
    return rows


def _migrations(service: str) -> Path:
    return Path(importlib.import_module(f"services.{service}.migrations").__path__[0])
