"""Large files go from the store to the client by themselves, where the store can be reached."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.gateway import objects
from services.gateway.objects import serve_file
from shared.contracts.artifacts import ManifestFile, blob_key
from shared.store.local import LocalStore


class Reachable(LocalStore):
    """A store with an address for clients."""

    def link(self, key: str, disposition: str) -> str | None:
        return f"https://objects.example/{key}?{disposition}"


@pytest.mark.parametrize(("size_bytes", "status"), [(9, 200), (10, 307)])
def test_only_large_files_are_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size_bytes: int, status: int
) -> None:
    monkeypatch.setattr(objects, "LINKED_FROM_BYTES", 10)
    file = ManifestFile(path="w", size_bytes=size_bytes, sha256="ab" * 32)
    for store, expected in ((Reachable(tmp_path), status), (LocalStore(tmp_path), 200)):
        store.put_bytes(blob_key(file.sha256), b"x" * size_bytes)
        answer = serve_file(store, file, "weights.bin", None)
        assert answer.status_code == expected
        if expected == 307:
            assert answer.headers["location"].startswith(f"https://objects.example/{blob_key(file.sha256)}?")
            assert "weights.bin" in answer.headers["location"]
