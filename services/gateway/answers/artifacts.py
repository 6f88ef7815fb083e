"""Artifacts and their versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.gateway.answers import unix
from shared.contracts.artifacts import ArtifactVersionState


def artifact(newest: ArtifactVersionState, aliases: Mapping[str, int]) -> dict[str, Any]:
    """A name, as its newest version is."""
    return {
        "id": newest.name,
        "object": "artifact",
        "name": newest.name,
        "kind": newest.kind,
        "latest": newest.version,
        "aliases": dict(aliases),
        "size_bytes": newest.manifest.size_bytes,
        "created_at": unix(newest.created_at),
        "metadata": newest.manifest.metadata,
    }


def version(state: ArtifactVersionState, aliases: Mapping[str, int], with_files: bool = True) -> dict[str, Any]:
    """One version, which never changes, and the aliases that point to it now."""
    files = [file.model_dump() for file in state.manifest.files] if with_files else None
    return {
        "id": state.pin.ref,
        "object": "artifact.version",
        "name": state.name,
        "version": state.version,
        "kind": state.kind,
        "aliases": sorted(alias for alias, number in aliases.items() if number == state.version),
        "size_bytes": state.manifest.size_bytes,
        "created_at": unix(state.created_at),
        "job_id": state.job_id,
        "parents": state.parents,
        "metadata": state.manifest.metadata,
        **({"files": files} if files is not None else {"file_count": len(state.manifest.files)}),
    }
