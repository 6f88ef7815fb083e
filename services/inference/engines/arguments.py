"""From a deployment's `engine_args` to vLLM's command line. Pure: neither torch nor vLLM is imported."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from services.inference.control import ReplicaSpec
from services.inference.engines import EngineRefused

OWNED = {
    *("model", "served_model_name", "enable_lora", "max_loras", "max_lora_rank", "lora_modules", "config"),
    *("host", "port", "uds", "api_key", "root_path", "ssl_keyfile", "ssl_certfile", "headless", "api_server_count"),
}
"""What the deployment itself decides, or what has no meaning without a socket."""

DEFAULT_KV_CACHE_BYTES = 2**30
CPU_FLAGS_WITH_BF16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


def command_line(spec: ReplicaSpec, *, on_cpu: bool, has_bf16: bool) -> list[str]:
    """vLLM's arguments for this replica. Raises EngineRefused for one that is not the deployment's to set."""
    given = {name.lstrip("-").replace("-", "_"): value for name, value in spec.engine_args.items()}
    for name in sorted(OWNED & given.keys()):
        raise EngineRefused(f"engine_args may not set {name!r}: the deployment itself decides it")
    defaults = cpu_defaults(given, has_bf16=has_bf16) if on_cpu else gpu_defaults(spec)
    argv = ["--model", spec.model_folder, "--served-model-name", spec.served_name]
    if spec.max_loras:
        argv += ["--enable-lora", "--max-loras", str(spec.max_loras), "--max-lora-rank", str(lora_rank(spec))]
    return argv + flags({**defaults, **given})


def lora_rank(spec: ReplicaSpec) -> int:
    """The smallest rank that vLLM has kernels for and that holds the wanted one."""
    ranks = (1, 8, 16, 32, 64, 128, 256, 320, 512)
    return next(rank for rank in ranks if rank >= min(spec.max_lora_rank, ranks[-1]))


def cpu_defaults(given: Mapping[str, Any], *, has_bf16: bool) -> dict[str, Any]:
    """On a CPU: no compilation at start (it takes longer than it saves on short runs), a cache of 1 GiB, and a number
    format that the processor computes itself."""
    defaults: dict[str, Any] = {"dtype": "auto" if has_bf16 else "float32"}
    if not given.keys() & {"compilation_config", "optimization_level"}:
        defaults["enforce_eager"] = True
    if "gpu_memory_utilization" not in given:
        defaults["kv_cache_memory_bytes"] = DEFAULT_KV_CACHE_BYTES
    return defaults


def gpu_defaults(spec: ReplicaSpec) -> dict[str, Any]:
    """On accelerators: split over all that the scheduler gave."""
    return {"tensor_parallel_size": len(spec.devices)} if len(spec.devices) > 1 else {}


def flags(arguments: Mapping[str, Any]) -> list[str]:
    """`{"max_model_len": 2048, "enforce_eager": True}` → `--max-model-len 2048 --enforce-eager`."""
    argv: list[str] = []
    for name, value in arguments.items():
        flag = name.replace("_", "-")
        if value is True:
            argv.append(f"--{flag}")
        elif value is False:
            argv.append(f"--no-{flag}")
        elif isinstance(value, list):
            argv += [f"--{flag}", *map(_text, value)]
        elif value is not None:
            argv += [f"--{flag}", _text(value)]
    return argv


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def processor_has_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this processor multiplies bf16 itself; where it does not, fp32 is far faster."""
    try:
        text = cpuinfo.read_text()
    except OSError:
        return False
    flags_lines = (line for line in text.splitlines() if line.startswith(("flags", "Features")))
    return bool(CPU_FLAGS_WITH_BF16 & set(next(flags_lines, "").split()))
