"""A service as its supervisor or container runs it: a process of its own, with the settings that a test gives it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def clean_environment() -> dict[str, str]:
    """The tests' own, without any setting."""
    return {name: value for name, value in os.environ.items() if not name.startswith("LLMOS_")}


def start(service: str, home: Path, bus_url: str, log: Path, **settings: str) -> subprocess.Popen[bytes]:
    """`python -m services.<service>`; what it says goes to the end of `log`."""
    where = {"LLMOS_HOME": str(home), "LLMOS_BUS_URL": bus_url, "LLMOS_LOG_FORMAT": "json"}
    doorbells = {"LLMOS_REDIS_URL": f"unix://{home / 'no-redis'}"}  # nobody rings: they are hints
    with log.open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", f"services.{service}"],
            env={**clean_environment(), **where, **doorbells, "LLMOS_TICK_S": "0.1", **settings},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
