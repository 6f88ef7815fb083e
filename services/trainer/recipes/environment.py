"""What must be set before torch and the Hugging Face libraries are imported, and what may be known of this machine."""

from __future__ import annotations

import os
import warnings
from importlib.metadata import version
from pathlib import Path

import psutil

from services.trainer.recipes.batch_size import Machine

LIBRARIES = ("torch", "transformers", "trl", "peft", "tokenizers")


def prepare_environment(hub: bool = False) -> None:
    """No telemetry, no network but for a base model of the hub, and threads that sleep while they wait.

    By default OpenMP's threads spin: with other processes on the same cores, a step was measured at 3.6 s that takes
    0.06 s with sleeping ones, and nothing was lost on an idle machine.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["DISABLE_TELEMETRY"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    # What moves is told by progress reports; bars would only fill the job's log.
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    if not hub:
        os.environ["HF_HUB_OFFLINE"] = "1"
    # On CPU: `pin_memory` cannot be used, which is no news.
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    # An adapter names its base by its ref, which peft takes for a hub id and does not find.
    warnings.filterwarnings("ignore", message="Could not find a config file")


def cpu_count() -> int:
    """The cores that this process may use: the trainer's share for it where one was given, else all it sees."""
    share = os.environ.get("OMP_NUM_THREADS", "")
    return int(share) if share.isdigit() else len(os.sched_getaffinity(0))


def machine(processes: int = 1) -> Machine:
    """Where training runs, and the memory that is free there: on a processor shared by so many processes of the job."""
    import torch

    if torch.cuda.is_available():
        return Machine(accelerator=True, free_bytes=torch.cuda.mem_get_info()[0])
    free_bytes = min(psutil.virtual_memory().available, _cgroup_free())
    return Machine(accelerator=False, free_bytes=free_bytes // processes)


def _cgroup_free(folder: Path = Path("/sys/fs/cgroup")) -> int:
    """What a container's limit leaves; without a limit, more than any machine has. Cached files give way."""
    try:
        limit, used = ((folder / name).read_text().strip() for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:
        return 2**62
    return 2**62 if limit == "max" else int(limit) - int(used) + int(stat.get("inactive_file", 0))


def library_versions() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES}
