"""The gateway stays light."""

from __future__ import annotations

import subprocess
import sys


def test_the_gateway_imports_nothing_that_trains_or_serves() -> None:
    heavy = "{'torch', 'transformers', 'vllm', 'celery', 'kafka'}"
    check = f"import sys, services.gateway.main; found = {heavy} & set(sys.modules); assert not found, found"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
