"""What leaves a node's cache, and when: versions not in use, the longest unused first. `cache.py` draws the folder."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from shared.store.disk import lock


def evict(folder: Path, limit_bytes: int, max_age_s: float) -> None:
    """Delete versions unused for `max_age_s`, then the longest unused ones until the rest fits into `limit_bytes`.

    What a process uses or fetches at this moment stays, even where that is more than the limit.
    """
    oldest = time.time() - max_age_s
    for use in _by_last_use(folder / "versions"):
        if _mtime(use) < oldest or _bytes(folder) > limit_bytes:
            _drop_version(use)
            _drop_orphans(folder)
    _drop_orphans(folder)
    for part in _by_last_use(folder / "parts", "*"):
        if _mtime(part) < oldest or _bytes(folder) > limit_bytes:
            _drop_unlocked(part)
    for manifest in (folder / "manifests").iterdir():
        if _mtime(manifest) < oldest:
            manifest.unlink(missing_ok=True)


def _drop_version(use: Path) -> None:
    try:
        held = lock(use, wait=False)
    except BlockingIOError:
        return
    with held:
        name = use.with_suffix("")
        shutil.rmtree(name, ignore_errors=True)
        shutil.rmtree(name.with_suffix(".making"), ignore_errors=True)
        name.with_suffix(".build").unlink(missing_ok=True)
        use.unlink(missing_ok=True)


def _drop_orphans(folder: Path) -> None:
    """Delete the blobs that no version links to. One on its way in has a link in the version that is being made."""
    for blob in (folder / "blobs").iterdir():
        try:
            if blob.stat().st_nlink == 1:
                blob.unlink()
        except FileNotFoundError:
            continue


def _drop_unlocked(part: Path) -> None:
    try:
        with lock(part, wait=False):
            part.unlink(missing_ok=True)
    except BlockingIOError:
        return


def _bytes(folder: Path) -> int:
    return sum(_size(path) for name in ("blobs", "parts") for path in (folder / name).iterdir())


def _by_last_use(folder: Path, pattern: str = "*.use") -> Iterator[Path]:
    return iter(sorted(folder.glob(pattern), key=_mtime))


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
