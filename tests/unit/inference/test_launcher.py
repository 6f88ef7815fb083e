"""What replicas leave on disk: their logs for a while, nothing else."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import msgspec
import pytest

from services.inference.control import Phase, ReplicaSpec, Report, encode, socket_pair
from services.inference.process import KEPT_LOGS, Launcher, ReplicaProcess
from shared.log_files import rotate
from shared.settings import Settings
from tests.waiting import aeventually

SPEC = ReplicaSpec(
    replica_id="r1",
    served_name="m@1",
    model_folder="/nowhere",
    engine="echo",
    engine_args={},
    max_loras=0,
    max_lora_rank=8,
    max_queue=1,
    threads=1,
    devices=[],
    restarts=0,
    cache_folder="/nowhere",
)


@pytest.fixture
def launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launcher:
    """Its replicas say something for ever."""
    chatty = tmp_path / "python"
    chatty.write_text("#!/bin/sh\nwhile :; do echo here; sleep 0.01; done\n")
    chatty.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(chatty))
    specs = tmp_path / "node" / "specs"
    specs.mkdir(parents=True)
    (specs / "left-by-a-killed-agent.json").write_text("{}")
    return Launcher(Settings(home=tmp_path), tmp_path / "node")


async def test_a_specification_goes_with_its_process(launcher: Launcher, tmp_path: Path) -> None:
    specs = tmp_path / "node" / "specs"
    assert list(specs.iterdir()) == []
    replica = await launcher(SPEC)
    assert [path.name for path in specs.iterdir()] == ["r1.json"]
    await replica.kill()
    replica.close()
    assert list(specs.iterdir()) == []


async def test_a_start_forgets_old_logs_but_those_of_running_replicas(launcher: Launcher, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    running = await launcher(SPEC)
    for name in ("replica-r1.log.1", "replica-long-ago.log"):
        (logs / name).touch()
        os.utime(logs / name, (0, 0))
    for number in range(KEPT_LOGS + 5):
        (logs / f"replica-other-{number}.log").touch()
    (logs / "gateway.log").touch()
    another = await launcher(msgspec.structs.replace(SPEC, replica_id="r2"))
    left = {path.name for path in logs.iterdir()}
    assert {"gateway.log", "replica-r1.log", "replica-r1.log.1", "replica-r2.log"} <= left
    assert "replica-long-ago.log" not in left
    assert len([name for name in left if "other" in name]) == KEPT_LOGS
    for replica in (running, another):
        await replica.kill()
        replica.close()


async def test_the_log_of_a_running_replica_is_bounded(
    launcher: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotate, "__defaults__", (50,))
    replica = await launcher(SPEC)

    def cut() -> bool:
        replica.bound_log()
        return (tmp_path / "logs" / "replica-r1.log.1").exists()

    await aeventually(cut)
    await aeventually(lambda: "here" in replica.log_tail(), what="the words after the cut")
    await replica.kill()
    replica.close()


async def test_who_listens_to_a_killed_replica_hears_its_last_words_and_then_the_end(tmp_path: Path) -> None:
    child = await asyncio.create_subprocess_exec("sleep", "60", start_new_session=True)
    ours, theirs = socket_pair()
    ours.setblocking(False)
    replica = ReplicaProcess(child, ours, tmp_path / "spec.json", tmp_path / "log", 0)

    async def heard() -> list[str]:
        return [report.reason async for report in replica.reports()]

    listening = asyncio.create_task(heard())
    theirs.send(encode(Report(Phase.loading, reason="first")))
    await asyncio.sleep(0)  # it listens now
    killing = asyncio.create_task(replica.kill())
    theirs.send(encode(Report(Phase.crashed, reason="last")))
    await killing
    assert await asyncio.wait_for(listening, 10) == ["first", "last"]
    replica.close()
    theirs.close()
