"""API keys: only their hashes are kept. The first start makes one; the one of the settings changes with them."""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlalchemy import Engine, delete, select

from services.gateway.sql import insert_new, reading, writing
from services.gateway.tables import api_keys
from shared.db.locks import hold
from shared.settings import EXAMPLE, Settings

KNOWN_FOR_S = 30.0
"""How long a key that was found is taken for good without asking SQL again."""
FROM_SETTINGS = "settings"
"""The name of the key that LLMOS_API_KEY says."""


@dataclass(frozen=True)
class Principal:
    """Who asks: a tenant, by one of its keys. `limits` are what differs from the settings."""

    tenant: str
    key_id: str
    limits: dict[str, int] = field(default_factory=dict)


class Keys:
    """The keys in SQL, remembered for a while. The example's key, which everybody knows, is one in a trial only."""

    def __init__(self, engine: Engine, trial: bool = False) -> None:
        self._engine = engine
        self._trial = trial
        self._known: dict[str, tuple[float, Principal]] = {}

    def remembered(self, key: str) -> Principal | None:
        """Without SQL: the principal of a key that was found lately."""
        found = self._known.get(_hash(key))
        return found[1] if found and time.monotonic() - found[0] < KNOWN_FOR_S else None

    def find(self, key: str) -> Principal | None:
        if EXAMPLE in key and not self._trial:
            return None
        hashed = _hash(key)
        with reading(self._engine) as sql:
            row = sql.execute(select(api_keys).where(api_keys.c.key_sha256 == hashed)).one_or_none()
        if row is None:
            self._known.pop(hashed, None)
            return None
        principal = Principal(row.tenant, row.id, row.limits)
        self._known[hashed] = (time.monotonic(), principal)
        return principal

    def add(self, key: str, tenant: str = "default", name: str = "", limits: dict[str, int] | None = None) -> None:
        """Nothing happens when the key is there already."""
        with writing(self._engine) as sql:
            insert_new(sql, api_keys, [_row(key, tenant, name, limits or {})])

    def ensure_first(self, settings: Settings) -> None:
        """Know the key of the settings, or the one in `home`/key; make that one when it is not there.

        A key that the settings said before is none any more. Of gateways that start at once on one database with
        different settings the last one is right.
        """
        file = settings.home / "key"
        key, name = settings.api_key or _read(file) or _make(file), FROM_SETTINGS if settings.api_key else "first"
        with writing(self._engine) as sql:
            hold(sql, "the key of the settings")
            replaced = api_keys.c.name == FROM_SETTINGS, api_keys.c.key_sha256 != _hash(key)
            sql.execute(delete(api_keys).where(*replaced))
            insert_new(sql, api_keys, [_row(key, "default", name, {})])


def _row(key: str, tenant: str, name: str, limits: dict[str, int]) -> dict[str, Any]:
    return {
        "id": uuid4().hex,
        "key_sha256": _hash(key),
        "tenant": tenant,
        "name": name,
        "created_at": datetime.now(UTC),
        "limits": limits,
    }


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except FileNotFoundError:
        return ""


def _make(file: Path) -> str:
    """A new key in `file`, mode 600. Of two gateways that start at once, both take the one that was there first."""
    file.parent.mkdir(parents=True, exist_ok=True)
    written = file.with_name(f"key.{uuid4().hex}")
    with os.fdopen(os.open(written, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(f"sk-llmos-{secrets.token_urlsafe(32)}")  # without a line's end: who reads the file has the key
        out.flush()
        os.fsync(out.fileno())
    try:
        os.link(written, file)
    except FileExistsError:
        if not _read(file):  # an empty file is what a crash of something else left
            written.replace(file)
    written.unlink(missing_ok=True)
    return _read(file)
