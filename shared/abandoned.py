"""What a role's processes of other names left on this machine.

A container is called after itself, so nobody of its name comes after one that was killed.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import structlog

from shared.node_name import lock_of

ASIDE = ".abandoned"

log = structlog.get_logger(__name__)


def clear_abandoned(home: Path, end: Callable[[Path], object]) -> list[str]:
    """`end` what still runs of each name in `home` that no process holds, and delete its folder. Returns the names.

    Several that start at once may do so side by side. `home` is the role's folder, as for NodeName.
    """
    aside = home / ASIDE
    names = [folder.name for folder in sorted(home.iterdir()) if folder.is_dir() and folder != aside]
    found = [name for name in names if _set_aside(home, name, aside)]
    for folder in sorted(aside.iterdir()) if aside.is_dir() else []:
        try:
            with suppress(FileNotFoundError):
                end(folder)
            shutil.rmtree(folder, onerror=_unless_another_was_faster)
        except OSError as error:
            log.warning("abandoned_folder_left", folder=str(folder), reason=str(error))
    return found


def _unless_another_was_faster(_: object, path: str, why: tuple[object, BaseException, object]) -> None:
    if not isinstance(why[1], FileNotFoundError):
        raise why[1]


def _set_aside(home: Path, name: str, aside: Path) -> bool:
    """Under the name's lock, and only for as long as that takes: whoever has the name may come back at any moment.

    The lock's file stays: one that is deleted while another opens it could be held twice.
    """
    with lock_of(home, name).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        aside.mkdir(exist_ok=True)
        try:
            (home / name).rename(aside / f"{name}-{uuid4().hex}")
        except FileNotFoundError:
            return False
        return True
