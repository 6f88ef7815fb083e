"""Which number format to compute in: bf16 where the processor has instructions for it, else fp32.

Without the instructions bf16 is emulated: a training step was measured at 257 s where fp32 took 9 s.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from shared.contracts.recipes import Precision

CPUINFO = Path("/proc/cpuinfo")
BF16_FLAGS = ("amx_bf16", "avx512_bf16")


class ChosenPrecision(NamedTuple):
    """`dtype` is torch's name of it (`bfloat16` or `float32`); `reason` is a sentence for the job's log."""

    dtype: str
    reason: str

    @property
    def bf16(self) -> bool:
        return self.dtype == "bfloat16"


def choose_precision(wanted: Precision = "auto", cpuinfo: Path = CPUINFO) -> ChosenPrecision:
    """The format for this process. An explicit wish is kept, with a warning in the reason where it will be slow."""
    native, why = _cuda_bf16() or _cpu_bf16(cpuinfo)
    if wanted == "fp32":
        return ChosenPrecision("float32", "fp32, as asked")
    if wanted == "bf16":
        slow = "" if native else f"; this will be slow: {why}"
        return ChosenPrecision("bfloat16", f"bf16, as asked{slow}")
    return ChosenPrecision("bfloat16" if native else "float32", f"{'bf16' if native else 'fp32'}: {why}")


def _cuda_bf16() -> tuple[bool, str] | None:
    import torch

    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return True, f"{name} computes in bf16"
    return False, f"{name} has no bf16 units"


def _cpu_bf16(cpuinfo: Path) -> tuple[bool, str]:
    flags = _flags(cpuinfo)
    for flag in BF16_FLAGS:
        if flag in flags:
            return True, f"the processor has {flag}"
    return False, f"the processor has neither {' nor '.join(BF16_FLAGS)}, and bf16 without them is many times slower"


def _flags(cpuinfo: Path) -> frozenset[str]:
    """The processor's feature flags; none where the system does not list them."""
    try:
        text = cpuinfo.read_text(errors="replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()
