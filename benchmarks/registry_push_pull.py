"""Promise: pushing and pulling an artifact through staging and cache ÷ the bare `minio` client ≥ 0.9.

Both move the same files to and from the same S3 server in one run, in turns; what is printed is the median of the
rounds. Ours also hashes every byte, on the way in and on the way out; the last row is against the bare client when it
does that too, after its download.
`python -m benchmarks.registry_push_pull [--server seaweedfs minio] [--megabytes 1024] [--rounds 5] [--quick]`
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from minio import Minio

from shared.store.cache import ArtifactCache
from shared.store.s3 import S3Store
from shared.store.staging import stage_folder
from tests.s3_server import S3_SERVERS, S3Server

PROMISE = 0.9
BUCKET = "benchmark"
MB = 2**20


def make_folder(folder: Path, megabytes: int) -> list[Path]:
    """One large file, as weights are, and a few small ones."""
    folder.mkdir()
    block = os.urandom(MB)
    with (folder / "model.safetensors").open("wb") as file:
        for number in range(megabytes):
            file.write(number.to_bytes(8, "little") + block[8:])
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        (folder / name).write_bytes(block[:20_000])
    return sorted(folder.iterdir())


class Sides:
    """The same work twice. Every push goes to a new place, every pull to an empty folder."""

    def __init__(self, server: S3Server, folder: Path, megabytes: int) -> None:
        self._client = Minio(server.endpoint, server.access_key, server.secret_key, secure=False)
        self._store = S3Store(server.endpoint, BUCKET, server.access_key, server.secret_key)
        self._store.prepare()
        self._files = make_folder(folder / "source", megabytes)
        self._folder = folder

    def push_ours(self, number: int) -> None:
        stage_folder(self._store, f"ours/{number}", self._folder / "source", {})

    def push_bare(self, number: int) -> None:
        for file in self._files:
            self._client.fput_object(BUCKET, f"bare/{number}/{file.name}", str(file))

    def pull_ours(self, number: int) -> None:
        cache = ArtifactCache(self._store, self._folder / "cache", 10**12, 10**6)
        cache.pull_staged(f"ours/{number}")
        cache.close()

    def pull_bare(self, number: int) -> None:
        for file in self._files:
            self._client.fget_object(BUCKET, f"bare/{number}/{file.name}", str(self._folder / "bare" / file.name))

    def pull_and_hash(self, number: int) -> None:
        self.pull_bare(number)
        for file in self._files:
            with (self._folder / "bare" / file.name).open("rb") as pulled:
                hashlib.file_digest(pulled, "sha256")

    def forget(self, number: int) -> None:
        for prefix in (f"ours/{number}/", f"bare/{number}/"):
            for found in list(self._store.list(prefix)):
                self._store.delete(found.key)
        self.forget_pulled()

    def forget_pulled(self) -> None:
        for folder in ("cache", "bare"):
            shutil.rmtree(self._folder / folder, ignore_errors=True)


def seconds(work: Callable[[int], None], number: int) -> float:
    start = time.perf_counter()
    work(number)
    return time.perf_counter() - start


def compare(sides: Sides, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """(ours, bare) in seconds, for every round; who begins changes from round to round."""
    found: dict[str, list[tuple[float, float]]] = {"push": [], "pull": [], "pull, both hash": []}
    for number in range(rounds + 1):
        for what, ours, bare in (
            ("push", sides.push_ours, sides.push_bare),
            ("pull", sides.pull_ours, sides.pull_bare),
            ("pull, both hash", sides.pull_ours, sides.pull_and_hash),
        ):
            sides.forget_pulled()
            first, second = (ours, bare) if number % 2 else (bare, ours)
            times = {first: seconds(first, number), second: seconds(second, number)}
            if number:  # the first round warms both up
                found[what].append((times[ours], times[bare]))
        sides.forget(number)
    return found


def show(kind: str, megabytes: int, found: dict[str, list[tuple[float, float]]]) -> None:
    for what, pairs in found.items():
        row = {
            "server": kind,
            "what": what,
            "ours_mb_per_s": round(statistics.median(megabytes / ours for ours, _ in pairs), 1),
            "bare_mb_per_s": round(statistics.median(megabytes / bare for _, bare in pairs), 1),
            "ratio": round(statistics.median(bare / ours for ours, bare in pairs), 3),
            "promise": PROMISE,
        }
        print(json.dumps(row))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="32 MB, 3 rounds")
    parser.add_argument("--server", choices=S3_SERVERS, nargs="+", default=list(S3_SERVERS))
    options = parser.parse_args()
    megabytes, rounds = (32, 3) if options.quick else (options.megabytes, options.rounds)
    for kind in options.server:
        with tempfile.TemporaryDirectory(prefix="push-pull-") as name, S3_SERVERS[kind](Path(name) / "s3") as server:
            show(kind, megabytes, compare(Sides(server, Path(name), megabytes), rounds))


if __name__ == "__main__":
    main()
