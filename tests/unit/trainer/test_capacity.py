"""What a node offers, and what a run gets of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from services.trainer.oom import oom_kills
from services.trainer.spawn import child_environment, threads_for
from shared.capacity import measure_capacity, parse_devices, visible
from shared.contracts.nodes import Capacity, Device


def capacity(cpus: float = 8, slots: int = 1, devices: int = 0) -> Capacity:
    gpus = [Device(index=index, kind="gpu", memory_bytes=1) for index in range(devices)]
    return Capacity(cpus=cpus, memory_bytes=1, devices=gpus, slots=slots)


def test_devices_are_read_from_the_drivers_listing() -> None:
    listing = "0, NVIDIA H100 80GB HBM3, 81559\n1, NVIDIA H100 80GB HBM3, 81559\n2, MIG, [N/A]\n"
    devices = parse_devices(listing)
    assert [device.index for device in devices] == [0, 1]
    assert devices[0].kind == "NVIDIA H100 80GB HBM3"
    assert devices[0].memory_bytes == 81559 << 20


def test_devices_hidden_from_the_trainer_are_not_offered() -> None:
    devices = parse_devices("0, a, 1\n1, b, 1\n")
    assert visible(devices, None) == devices
    assert [device.index for device in visible(devices, "1")] == [1]
    assert visible(devices, "") == []


def test_a_containers_limits_count(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    (tmp_path / "memory.max").write_text("1000000\n")
    found = measure_capacity(3, tmp_path)
    assert (found.cpus, found.memory_bytes, found.slots) == (0.5, 1_000_000, 3)


def test_without_limits_the_machine_counts(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert measure_capacity(1, tmp_path).cpus == len(os.sched_getaffinity(0))


def test_a_run_gets_its_equal_share_of_the_processors_or_what_it_asked_for() -> None:
    assert threads_for([], 1, capacity(cpus=8, slots=1)) == 8
    assert threads_for([], 1, capacity(cpus=8, slots=4)) == 2
    assert threads_for([], 6, capacity(cpus=8, slots=4)) == 6
    assert threads_for([], 99, capacity(cpus=8, slots=4)) == 8
    assert threads_for([0], 1, capacity(cpus=8, devices=4)) == 2
    assert threads_for([], 1, capacity(cpus=0.5)) == 1


def test_the_ranks_of_an_attempt_divide_its_share_of_the_processors() -> None:
    assert threads_for([], 1, capacity(cpus=8, slots=1), ranks=4) == 2
    assert threads_for([0, 1], 1, capacity(cpus=8, devices=4), ranks=2) == 2
    assert threads_for([], 1, capacity(cpus=2, slots=1), ranks=4) == 1


def test_a_child_gets_no_settings_of_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMOS_S3_SECRET_KEY", "secret")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    environment = child_environment("r", [], 1, capacity())
    assert "secret" not in environment.values()
    assert environment["HF_HUB_OFFLINE"] == "1"


def test_a_child_sees_its_devices_only() -> None:
    assert child_environment("r", [2, 3], 1, capacity(devices=4))["CUDA_VISIBLE_DEVICES"] == "2,3"
    environment = child_environment("r", [], 1, capacity())
    assert environment["CUDA_VISIBLE_DEVICES"] == ""
    assert environment["TOKENIZERS_PARALLELISM"] == "false"


def test_kills_for_want_of_memory_are_counted_where_the_kernel_counts_them(tmp_path: Path) -> None:
    group, machine = tmp_path / "memory.events", tmp_path / "vmstat"
    machine.write_text("pgfault 7\noom_kill 2\n")
    assert oom_kills((group, machine)) == 2
    group.write_text("low 0\noom 5\noom_kill 1\noom_group_kill 0\n")
    assert oom_kills((group, machine)) == 1
    assert oom_kills((tmp_path / "none",)) == 0
