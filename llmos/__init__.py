"""LLM OS from Python: `LLMOS` and `AsyncLLMOS` for what the `openai` package does not cover.

from llmos import LLMOS

system = LLMOS()                                   # finds the system that `llmos up` started
job = system.submit_job("probe", params={"steps": 3})
print(system.wait_job(job["id"])["status"])
chat = system.openai().chat.completions            # and an `openai` client of the same gateway
"""

from llmos.async_client import AsyncLLMOS
from llmos.client import LLMOS
from llmos.errors import APIError, Conflict, LLMOSError, NoKey, NotConnected, NotFound

__all__ = ["LLMOS", "APIError", "AsyncLLMOS", "Conflict", "LLMOSError", "NoKey", "NotConnected", "NotFound"]
