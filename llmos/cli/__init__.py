"""The `llmos` command.

Exit codes: 0 done · 1 failed · 2 wrong use · 3 there is no such thing · 4 nothing answers · 5 not in this state ·
130 interrupted.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

INTERRUPTED = 130


def main() -> None:
    """Run the command line; errors are one sentence on stderr."""
    try:
        with _ending_at_once():
            from llmos.cli.run import run  # a second and more on a busy machine
        run()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


@contextmanager
def _ending_at_once() -> Iterator[None]:
    """A Ctrl-C ends the process: nothing has been started, and an exception would surface anywhere in the imports."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # it is ignored, as in the background of a script, or somebody else's
        return
    signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    yield
    signal.signal(signal.SIGINT, signal.default_int_handler)
