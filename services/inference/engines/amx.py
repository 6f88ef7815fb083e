"""Leave to use AMX, the matrix unit of newer Intel processors.

Linux kills a process with SIGILL that touches AMX's tiles without having asked for them. vLLM's bf16 attention on CPU
uses them wherever the processor has them, and asks only where oneDNN happens to have run first.
(Linux: Documentation/arch/x86/xstate.rst.)
"""

from __future__ import annotations


def allow_amx() -> None:
    """Ask for AMX in this process, and for those it forks. Nothing happens where the processor has none.

    Also a `vllm.general_plugins` entry point: vLLM calls it in every process that it spawns.
    """
    import torch

    torch.cpu._init_amx()  # noqa: SLF001 - torch's own name for the system call; there is no public one
