"""Pure rules of the agent: who sits on this node, what fits, when to try again, and why something failed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shared.contracts.artifacts import ArtifactPin, Manifest
from shared.contracts.deployments import DeploymentSpec, DesiredDeployment, ReplicaPlace
from shared.contracts.nodes import Capacity

LONGEST_PAUSE_S = 60.0
WELL_AFTER_S = 600.0
"""A replica that was ready for so long has come back to life: its earlier crashes no longer count."""
CPU_OVERHEAD_BYTES = 3 * 2**29
"""What vLLM takes on a CPU besides weights and cache: measured 0.5 GB in the replica and 0.5 GB in the engine."""
KV_CACHE_BYTES = 2**30
GPU_SHARE = 0.92
"""vLLM's own `gpu_memory_utilization`."""
GPU_WEIGHTS_FACTOR = 1.1
"""Weights and the least room for activations beside them."""

DTYPE_BYTES = {"float32": 4, "float": 4, "fp32": 4, "float16": 2, "half": 2, "bfloat16": 2, "bf16": 2, "fp16": 2}
ERROR_LINE = re.compile(r"((?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Refused|Interrupt|Killed)\b\s*:?.*)")
WRAPPERS = ("Engine core initialization failed", "EngineDeadError", "unhandled errors in a TaskGroup", "WorkerProc")


@dataclass(frozen=True)
class Seat:
    """One replica that this node is to keep: its place, and what its deployment wants now."""

    deployment: str
    tenant: str
    version: int
    place: ReplicaPlace
    spec: DeploymentSpec

    @property
    def replica_id(self) -> str:
        return self.place.replica_id

    @property
    def adapters(self) -> dict[str, ArtifactPin]:
        return {pin.ref: pin for pin in self.spec.adapters} if self.spec.max_loras else {}

    def same_process(self, other: Seat) -> bool:
        """Whether a running process serves both: only adapters and the number of replicas may differ."""
        loose = {"adapters": [], "auto_adapters": True, "replicas": 0}
        return self.place == other.place and self.spec.changed(**loose) == other.spec.changed(**loose)


def seats(deployments: Iterable[DesiredDeployment], node: str) -> dict[str, Seat]:
    """Replica → its seat, for every replica that is placed on `node`."""
    return {
        place.replica_id: Seat(desired.name, desired.tenant, desired.version, place, desired.spec)
        for desired in deployments
        for place in desired.replicas
        if place.node == node
    }


def pause_s(crashes: int) -> float:
    """How long to wait before the next start: 1, 2, 4 … seconds, a minute at most."""
    return min(LONGEST_PAUSE_S, 2.0 ** max(0, crashes - 1))


def weights_bytes(manifest: Manifest) -> int:
    """The size of a version's weights; of everything where it has no safetensors."""
    weights = sum(file.size_bytes for file in manifest.files if file.path.endswith(".safetensors"))
    return weights or manifest.size_bytes


def served_bytes(manifest: Manifest, spec: DeploymentSpec) -> int:
    """What the weights take in memory, converted where the deployment asks for another number format than stored."""
    stored = DTYPE_BYTES.get(str(manifest.metadata.get("dtype") or manifest.metadata.get("torch_dtype")))
    served = DTYPE_BYTES.get(str(spec.engine_args.get("dtype", "auto")))
    ratio = served / stored if stored and served else 1.0
    return int(weights_bytes(manifest) * ratio)


def too_big(manifest: Manifest, seat: Seat, capacity: Capacity) -> str:
    """Why the model can never run on this node, in a sentence; empty where it can."""
    if seat.spec.engine != "vllm":
        return ""
    need, what = served_bytes(manifest, seat.spec), f"{seat.spec.model.ref} ({gib(served_bytes(manifest, seat.spec))})"
    if seat.place.devices:
        held = [device.memory_bytes for device in capacity.devices if device.index in seat.place.devices]
        room = int(sum(held) * _number(seat.spec, "gpu_memory_utilization", GPU_SHARE))
        if need * GPU_WEIGHTS_FACTOR > room:
            return f"{what} does not fit into the {gib(room)} of its accelerators; give it more devices or quantize it"
        return ""
    need = memory_needed(manifest, seat)
    if need > capacity.memory_bytes:
        return (
            f"{what} needs about {gib(need)} of memory with its cache, and this node has {gib(capacity.memory_bytes)}; "
            "deploy a smaller model or use a bigger node"
        )
    return ""


def memory_needed(manifest: Manifest, seat: Seat) -> int:
    """Main memory that a replica takes on a CPU; 0 where accelerators hold the weights or the engine has none."""
    if seat.place.devices or seat.spec.engine != "vllm":
        return 0
    cache = int(_number(seat.spec, "kv_cache_memory_bytes", KV_CACHE_BYTES))
    return served_bytes(manifest, seat.spec) + cache + CPU_OVERHEAD_BYTES


def _number(spec: DeploymentSpec, name: str, default: float) -> float:
    """An engine argument that should be a number; the engine itself refuses what is none."""
    value = spec.engine_args.get(name)
    return float(value) if isinstance(value, int | float) else default


def gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f} GiB"


def error_in_log(lines: Sequence[str]) -> str:
    """The last error that was said and is no mere wrapper of another; empty where none was."""
    causes = [error for error in _errors(lines) if not any(wrapper in error for wrapper in WRAPPERS)]
    return causes[-1][:500] if causes else ""


def _errors(lines: Sequence[str]) -> list[str]:
    return [found.group(1).strip() for line in lines if (found := ERROR_LINE.search(line)) and "Warning" not in line]


def reason_from_log(lines: Sequence[str], exit_code: int | None) -> str:
    """Why a process ended, from the last lines it said: its last error, or else how it ended."""
    if told := error_in_log(lines):
        return told
    if wrappers := _errors(lines):
        return wrappers[-1][:500]
    ended = f"was killed by signal {-exit_code}" if exit_code and exit_code < 0 else f"ended with code {exit_code}"
    said = next((line.strip() for line in reversed(lines) if line.strip()), "")
    hint = "; if the machine ran out of memory, deploy a smaller model" if exit_code == -9 else ""
    return f"the replica's process {ended}{hint}" + (f"; its last line was: {said[:300]}" if said else "")
