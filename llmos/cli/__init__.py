"""The `llmos` command.

Exit codes: 0 done · 1 failed · 2 wrong use · 3 there is no such thing · 4 nothing answers · 5 not in this state ·
130 interrupted.
"""

from __future__ import annotations

import sys

from llmos.cli.app import app
from llmos.cli.output import exit_code, say_error
from llmos.embedded.supervisor import UpError
from llmos.errors import LLMOSError
from shared.settings import SettingsError


def main() -> None:
    """Run the command line; errors are one sentence on stderr."""
    try:
        app()
    except (LLMOSError, UpError, SettingsError, OSError) as error:
        say_error(str(error))
        sys.exit(exit_code(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        status = openai_status(error)
        if status is None:
            raise
        say_error(str(error))
        sys.exit({404: 3, 409: 5, 0: 4}.get(status, 1))


def openai_status(error: Exception) -> int | None:
    """The HTTP status of an `openai` error, 0 where nothing answered, None for any other exception."""
    openai = sys.modules.get("openai")
    if openai is None or not isinstance(error, openai.OpenAIError):
        return None
    return int(getattr(error, "status_code", 0))
