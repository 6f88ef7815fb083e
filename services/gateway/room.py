"""Room on the disk of the gateway's database: without it nothing more can be accepted."""

from __future__ import annotations

import shutil
from pathlib import Path

from sqlalchemy.engine import make_url

from shared.settings import Settings

LEAST_FREE_BYTES = 2**20
"""Less is as good as none: what is accepted next may not fit any more."""


def disk_of(settings: Settings) -> str:
    """`the disk of FOLDER`, as a message names it."""
    folder = _folder(settings)
    return f"the disk of {folder}" if folder else "the database's disk"


def no_room(settings: Settings) -> str | None:
    """Why nothing can be accepted, where the database is a file here; a server's disk is its own to watch."""
    folder = _folder(settings)
    if folder is None:
        return None
    free_bytes = shutil.disk_usage(folder).free
    return f"{disk_of(settings)} is full: {free_bytes} bytes are left" if free_bytes < LEAST_FREE_BYTES else None


def _folder(settings: Settings) -> Path | None:
    """The home where the database lies in it, else its own folder; None for a server's."""
    address = make_url(settings.effective_db_url("gateway"))
    if address.get_backend_name() != "sqlite" or not address.database:
        return None
    file = Path(address.database)
    return settings.home if file.is_relative_to(settings.home) else file.parent
