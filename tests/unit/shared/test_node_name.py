"""A node's name belongs to one process of a role: on its machine, and among all machines."""

from __future__ import annotations

import os
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from shared.bus.memory import MemoryBus
from shared.contracts.nodes import Capacity, NodeHeartbeat, Role, node_key
from shared.contracts.topics import NODES_HEARTBEATS
from shared.node_name import NodeName, NodeTaken
from tests.waiting import eventually

BEAT_S = 0.05
TIMEOUT_S = 30.0


@pytest.fixture
def bus() -> MemoryBus:
    return MemoryBus()


def beat(bus: MemoryBus, boot_id: str, seq: int = 0, at: datetime | None = None, stopping: bool = False) -> None:
    heartbeat = NodeHeartbeat(
        node="n1",
        role=Role.trainer,
        boot_id=boot_id,
        capacity=Capacity(cpus=1, memory_bytes=1),
        seq=seq,
        stopping=stopping,
        at=at or datetime.now(UTC),
    )
    bus.publish(NODES_HEARTBEATS, node_key("n1", Role.trainer), heartbeat).result()


def test_a_name_is_held_by_one_process_of_its_role(tmp_path: Path) -> None:
    with NodeName(tmp_path / "trainer", "n1", Role.trainer):
        with pytest.raises(
            NodeTaken, match=rf"trainer of the node 'n1' runs here already, process {os.getpid()}.*LLMOS_NODE"
        ):
            NodeName(tmp_path / "trainer", "n1", Role.trainer)
        NodeName(tmp_path / "inference", "n1", Role.inference).close()
        NodeName(tmp_path / "trainer", "n2", Role.trainer).close()
    NodeName(tmp_path / "trainer", "n1", Role.trainer).close()


def test_a_name_that_beats_on_another_machine_is_refused(tmp_path: Path, bus: MemoryBus) -> None:
    beat(bus, "elsewhere")
    ended = threading.Event()

    def go_on_beating() -> None:
        seq = 0
        while not ended.wait(BEAT_S):
            beat(bus, "elsewhere", seq := seq + 1)

    other = threading.Thread(target=go_on_beating)
    other.start()
    with (
        NodeName(tmp_path, "n1", Role.trainer) as name,
        pytest.raises(NodeTaken, match="another machine"),
    ):
        name.claim(bus, heartbeat_s=10, heartbeat_timeout_s=TIMEOUT_S)
    ended.set()
    other.join()


@pytest.mark.parametrize("stopping", [False, True])
def test_a_name_that_fell_silent_or_said_farewell_may_be_taken(tmp_path: Path, bus: MemoryBus, stopping: bool) -> None:
    beat(bus, "elsewhere", stopping=stopping)
    with NodeName(tmp_path, "n1", Role.trainer) as name:
        name.claim(bus, BEAT_S, TIMEOUT_S)


def test_a_restart_on_the_same_machine_waits_for_nobody(tmp_path: Path, bus: MemoryBus) -> None:
    with NodeName(tmp_path, "n1", Role.trainer) as killed:
        beat(bus, killed.boot_id)
    with NodeName(tmp_path, "n1", Role.trainer) as again:
        again.claim(bus, heartbeat_s=3600, heartbeat_timeout_s=TIMEOUT_S)


def test_a_name_nobody_used_for_long_waits_for_nobody(tmp_path: Path, bus: MemoryBus) -> None:
    beat(bus, "elsewhere", at=datetime.now(UTC) - timedelta(minutes=5))
    with NodeName(tmp_path, "n1", Role.trainer) as name:
        name.claim(bus, heartbeat_s=3600, heartbeat_timeout_s=TIMEOUT_S)


def test_of_two_that_start_at_once_the_later_one_is_told(tmp_path: Path, bus: MemoryBus) -> None:
    """Neither could see the other before both had the name."""
    told: list[str] = []
    with NodeName(tmp_path / "a", "n1", Role.trainer) as a, NodeName(tmp_path / "b", "n1", Role.trainer) as b:
        for name, letter in ((a, "a"), (b, "b")):
            name.claim(bus, 10, TIMEOUT_S, on_taken=lambda _, letter=letter: told.append(letter))  # type: ignore[misc]
        for seq in range(2):
            beat(bus, a.boot_id, seq)
            beat(bus, b.boot_id, seq)
        eventually(lambda: told == ["b"])


def test_one_that_came_while_the_other_was_cut_off_is_told_when_that_one_is_back(
    tmp_path: Path, bus: MemoryBus
) -> None:
    told: list[NodeTaken] = []
    beat(bus, "cut-off", seq=1, at=datetime.now(UTC) - timedelta(hours=1))
    with NodeName(tmp_path, "n1", Role.trainer) as name:
        name.claim(bus, 10, TIMEOUT_S, on_taken=told.append)
        beat(bus, name.boot_id)
        beat(bus, "cut-off", seq=2)
        eventually(lambda: told)
        assert "another machine" in str(told[0])


def test_what_the_killed_process_before_said_late_is_no_rival(tmp_path: Path, bus: MemoryBus) -> None:
    told: list[NodeTaken] = []
    with NodeName(tmp_path, "n1", Role.trainer) as killed:
        beat(bus, killed.boot_id)
    with NodeName(tmp_path, "n1", Role.trainer) as again:
        again.claim(bus, 10, TIMEOUT_S, on_taken=told.append)
        beat(bus, again.boot_id)
        beat(bus, killed.boot_id, seq=1)
        beat(bus, again.boot_id, seq=1)
        seen: list[str] = []
        bus.follow(NODES_HEARTBEATS, lambda record: seen.append(record.key))
        eventually(lambda: seen)
    assert told == []
