"""The `llmos` command.

Exit codes: 0 done · 1 failed · 2 wrong use · 3 there is no such thing · 4 nothing answers · 5 not in this state ·
130 interrupted.
"""

from __future__ import annotations

import sys

from llmos.cli.app import app
from llmos.cli.openai_errors import sentence_of
from llmos.cli.output import exit_code, say_error
from llmos.embedded.errors import UpError
from llmos.errors import LLMOSError
from shared.bus.port import BusError
from shared.requests.port import RequestsUnavailable
from shared.settings import SettingsError


def main() -> None:
    """Run the command line; errors are one sentence on stderr."""
    try:
        app()
    except (LLMOSError, UpError, SettingsError, BusError, RequestsUnavailable, OSError) as error:
        say_error(str(error))
        sys.exit(exit_code(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        found = sentence_of(error)
        if found is None:
            raise
        sentence, code = found
        say_error(sentence)
        sys.exit(code)
