"""LLM OS from Python: `LLMOS` and `AsyncLLMOS` for what the `openai` package does not cover.

from llmos import LLMOS

system = LLMOS()                                   # finds the system that `llmos up` started
job = system.submit_job("probe", params={"steps": 3})
print(system.wait_job(job["id"])["status"])
chat = system.openai().chat.completions            # and an `openai` client of the same gateway
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmos.async_client import AsyncLLMOS
    from llmos.client import LLMOS
    from llmos.errors import APIError, Conflict, LLMOSError, NoAddress, NoKey, NotConnected, NotFound

__all__ = [
    "LLMOS",
    "APIError",
    "AsyncLLMOS",
    "Conflict",
    "LLMOSError",
    "NoAddress",
    "NoKey",
    "NotConnected",
    "NotFound",
]

_MODULES = {"LLMOS": "llmos.client", "AsyncLLMOS": "llmos.async_client"}


def __getattr__(name: str) -> Any:
    """Imported when it is asked for: the `llmos` command must be able to catch a Ctrl-C before anything heavy is."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES.get(name, "llmos.errors")), name)
