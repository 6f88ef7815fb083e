"""Every line of a log says which service and node it is from."""

from __future__ import annotations

import json
import subprocess
import sys

LOGS = """
import logging, threading, structlog
from shared.settings import Settings
from shared.telemetry import setup_telemetry
setup_telemetry(Settings(node="n1", log_format="json"), "registry")
for log in (structlog.get_logger("a").info, logging.getLogger("b").info):
    thread = threading.Thread(target=log, args=("hello",))
    thread.start()
    thread.join()
"""


def test_lines_of_every_thread_name_service_and_node() -> None:
    done = subprocess.run([sys.executable, "-c", LOGS], capture_output=True, text=True, timeout=60, check=True)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(line["event"], line["service"], line["node"]) for line in lines] == [("hello", "registry", "n1")] * 2
