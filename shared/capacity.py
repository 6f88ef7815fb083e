"""What this machine offers: processors, memory, accelerators. Asks no library that loads CUDA."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import psutil
import structlog

from shared.contracts.nodes import Capacity, Device

log = structlog.get_logger(__name__)

CGROUP = Path("/sys/fs/cgroup")
QUERY = ("nvidia-smi", "--query-gpu=index,name,memory.total", "--format=csv,noheader,nounits")
QUERY_TIMEOUT_S = 30


def measure_capacity(slots: int, cgroup: Path = CGROUP) -> Capacity:
    """This process's share of the machine: container limits count."""
    return Capacity(cpus=_cpus(cgroup), memory_bytes=_memory_bytes(cgroup), devices=find_devices(), slots=slots)


def find_devices() -> list[Device]:
    """The NVIDIA devices, none where the driver's tool is not there or does not answer."""
    if shutil.which(QUERY[0]) is None:
        return []
    try:
        found = subprocess.run(QUERY, capture_output=True, text=True, timeout=QUERY_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("devices_unknown", reason=f"nvidia-smi failed: {error}; this node offers no accelerator")
        return []
    return visible(parse_devices(found.stdout), os.environ.get("CUDA_VISIBLE_DEVICES"))


def visible(devices: list[Device], setting: str | None) -> list[Device]:
    """Those that CUDA_VISIBLE_DEVICES of this process itself leaves; all where it is not set."""
    if setting is None:
        return devices
    wanted = {int(index) for index in setting.split(",") if index.strip().isdigit()}
    return [device for device in devices if device.index in wanted]


def parse_devices(listing: str) -> list[Device]:
    """The lines `index, name, memory in MiB` that nvidia-smi prints. What has another form is left out."""
    devices = []
    for line in listing.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 3 and fields[0].isdigit() and fields[2].isdigit():
            devices.append(Device(index=int(fields[0]), kind=fields[1], memory_bytes=int(fields[2]) << 20))
        elif line.strip():
            log.warning("device_left_out", line=line)
    return devices


def _cpus(cgroup: Path) -> float:
    cpus = float(len(os.sched_getaffinity(0)))
    quota, _, period = _read(cgroup / "cpu.max").partition(" ")
    return min(cpus, int(quota) / int(period)) if quota.isdigit() and period.isdigit() else cpus


def _memory_bytes(cgroup: Path) -> int:
    total = psutil.virtual_memory().total
    limits = (_read(cgroup / "memory.max"), _read(cgroup / "memory" / "memory.limit_in_bytes"))
    return min([total, *(int(limit) for limit in limits if limit.isdigit())])


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
