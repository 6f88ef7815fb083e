"""The gateway stays light, and can be stopped from its first moment on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_the_gateway_imports_nothing_that_trains_or_serves() -> None:
    heavy = "{'torch', 'transformers', 'vllm', 'celery', 'kafka'}"
    check = f"import sys, services.gateway.main; found = {heavy} & set(sys.modules); assert not found, found"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_a_gateway_that_is_told_to_stop_while_it_starts_ends_at_once(tmp_path: Path) -> None:
    told = """
import os, signal, threading
from services.gateway import main
def build(settings, refused):
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(60)
main.build = build
main.main()
"""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LLMOS_")}
    environment = {**clean, "LLMOS_HOME": str(tmp_path)}
    assert subprocess.run([sys.executable, "-c", told], env=environment, timeout=50, check=False).returncode == 0
