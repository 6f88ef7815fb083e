"""The command line from the first argument to the exit code."""

from __future__ import annotations

import sys

from llmos.cli.app import app
from llmos.cli.openai_errors import sentence_of
from llmos.cli.output import exit_code, say_error
from llmos.embedded.errors import UpError
from llmos.errors import LLMOSError, in_words
from shared.bus.port import BusError
from shared.requests.port import RequestsUnavailable
from shared.settings import SettingsError


def run() -> None:
    """Run the command that the arguments name; ends with its exit code."""
    try:
        app()
    except (LLMOSError, UpError, SettingsError, BusError, RequestsUnavailable) as error:
        say_error(str(error))
        sys.exit(exit_code(error))
    except OSError as error:
        say_error(in_words(error))
        sys.exit(exit_code(error))
    except Exception as error:
        found = sentence_of(error)
        if found is None:
            raise
        sentence, code = found
        say_error(sentence)
        sys.exit(code)
