"""What `llmos admin` prints besides its answer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import orjson

SCRIPT = """
import logging
import sys
from shared import store

def prepare(settings):
    logging.getLogger("store").info("looked")
    return []

store.prepare = prepare
from llmos.cli import main
sys.argv = ["llmos", "admin", "init", "--json"]
main()
"""


def test_init_logs_as_the_services_do(tmp_path: Path) -> None:
    settings = {"LLMOS_HOME": str(tmp_path), "LLMOS_BUS_URL": "memory://", "LLMOS_LOG_FORMAT": "json"}
    environment = {**os.environ, "LLMOS_REDIS_URL": "memory://", **settings}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = map(orjson.loads, done.stderr.splitlines())
    assert (line["service"], line["level"], line["event"]) == ("init", "info", "looked")
    assert orjson.loads(done.stdout)["store"] == {"made": []}
