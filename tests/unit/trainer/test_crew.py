"""The ranks meet through torch's own store, or say within a bounded time who did not come."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.trainer.gang import reserve_port
from services.trainer.recipes.environment import prepare_environment

prepare_environment()

import torch  # noqa: E402
from torch import distributed  # noqa: E402

from services.trainer.recipes.api import Gang, PeersLost, RecipeContext, RecipeError, Stopped  # noqa: E402
from services.trainer.recipes.crew import (  # noqa: E402
    Crew,
    _await_all,
    _meeting_place,
    backend_for,
    is_lost_contact,
    meet,
)
from services.trainer.recipes.model_precision import precision_for  # noqa: E402
from shared.contracts.jobs import JobSpec  # noqa: E402
from tests.integration.tiny_models import Reports  # noqa: E402


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with reserve_port("127.0.0.1") as listener:
        yield listener


def seat(listener: socket.socket, rank: int, rendezvous: str = "j/1", timeout_s: float = 20) -> Gang:
    """As the child is told; rank 0 gets a descriptor of its own, which the store closes."""
    fd = socket.socket.dup(listener).detach() if rank == 0 else None
    return Gang(
        rank=rank,
        size=2,
        local_rank=rank,
        local_size=2,
        node_rank=0,
        host="127.0.0.1",
        port=listener.getsockname()[1],
        rendezvous=rendezvous,
        timeout_s=timeout_s,
        listener=fd,
    )


def come(gang: Gang, stopping: Callable[[], bool] = lambda: False) -> distributed.TCPStore:
    """What `meet` does before it joins torch's process group, of which a process has only one."""
    deadline_s = time.monotonic() + gang.timeout_s
    store = _meeting_place(gang, deadline_s, stopping)
    _await_all(distributed.PrefixStore(f"{gang.rendezvous}/here", store), gang, deadline_s, stopping)
    return store


def test_ranks_that_come_in_any_order_meet(listener: socket.socket) -> None:
    with ThreadPoolExecutor() as pool:
        late = pool.submit(come, seat(listener, 1))
        store = come(seat(listener, 0))  # with it the meeting place goes
        assert late.result().num_keys() == store.num_keys()


def test_a_rank_whose_peer_never_comes_says_so_in_time(listener: socket.socket) -> None:
    with pytest.raises(PeersLost, match=r"of its 2 ranks these did not come within 0.3 s: 1"):
        come(seat(listener, 0, timeout_s=0.3))


def test_a_rank_without_a_meeting_place_says_so_in_time(listener: socket.socket) -> None:
    with pytest.raises(PeersLost, match=r"rank 0 did not open 127.0.0.1:\d+ within 0.3 s"):
        come(seat(listener, 1, timeout_s=0.3))


def test_a_late_child_of_an_older_attempt_meets_nobody(listener: socket.socket) -> None:
    with ThreadPoolExecutor() as pool:
        late = pool.submit(come, seat(listener, 1, "j/1", timeout_s=1))
        with pytest.raises(PeersLost, match="did not come"):
            come(seat(listener, 0, "j/2", timeout_s=1))
        with pytest.raises(PeersLost):
            late.result()


def test_a_rank_that_waits_still_stops_when_it_is_told(listener: socket.socket) -> None:
    asked = threading.Event()
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(come, seat(listener, 0), asked.is_set)
        asked.set()
        with pytest.raises(Stopped):
            waiting.result()


def test_one_rank_alone_asks_nobody(tmp_path: Path) -> None:
    context = RecipeContext(JobSpec(type="sft"), {}, tmp_path, None, Reports(), lambda: False)
    crew = meet(context)
    assert crew == Crew(rank=0, size=1)
    assert (crew.total(3, 4), crew.least(5), crew.any(False), crew.gathered(b"x")) == ([3, 4], 5, False, [b"x"])
    crew.alike("anything")
    with pytest.raises(RuntimeError, match="shapes"), crew.noticing_loss():
        raise RuntimeError("shapes do not fit")


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer"), True),
        (RuntimeError("NCCL error in: ProcessGroupNCCL.cpp, remote process exited"), True),
        (distributed.DistNetworkError("The client socket has timed out"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_another_ranks_end_is_told_from_a_fault_of_ones_own(error: RuntimeError, lost: bool) -> None:
    assert is_lost_contact(error) is lost
    with pytest.raises(PeersLost if lost else RuntimeError), Crew(rank=1, size=2).noticing_loss():
        raise error


@pytest.mark.parametrize(
    ("wanted", "accelerators", "backend"),
    [
        ("auto", False, "gloo"),
        ("auto", True, "cpu:gloo,cuda:nccl"),
        ("nccl", True, "cpu:gloo,cuda:nccl"),
        ("gloo", True, "gloo"),
        ("gloo", False, "gloo"),
    ],
)
def test_gradients_go_over_nccl_between_accelerators_unless_the_setting_says_otherwise(
    wanted: str, accelerators: bool, backend: str
) -> None:
    assert backend_for(wanted, accelerators) == backend


def test_nccl_without_accelerators_is_refused_with_what_to_do() -> None:
    with pytest.raises(RecipeError, match="LLMOS_GANG_BACKEND=nccl") as refused:
        backend_for("nccl", accelerators=False)
    assert "LLMOS_GANG_BACKEND to auto" in refused.value.hint


def joined(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gang: Gang, accelerators: bool) -> dict[str, Any]:
    """What torch is told when the rank joins, and the device that it takes."""
    told: dict[str, Any] = {}
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr("services.trainer.recipes.crew._meeting_place", lambda *_: distributed.HashStore())
    monkeypatch.setattr("services.trainer.recipes.crew._await_all", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: accelerators)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: told.update(device=index))
    monkeypatch.setattr(distributed, "init_process_group", lambda backend, **how: told.update(how, backend=backend))
    context = RecipeContext(JobSpec(type="sft"), {}, tmp_path, None, Reports(), lambda: False, gang=gang)
    crew = meet(context)
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
    return {**told, "crew": crew, "environment": [os.environ[name] for name in names]}


def test_each_rank_takes_the_device_of_its_own_number_and_finds_what_torchrun_sets(
    listener: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gang = replace(seat(listener, 0), rank=5, size=8, local_rank=1, local_size=4, node_rank=1, listener=None)
    told = joined(monkeypatch, tmp_path, gang, accelerators=True)
    assert (told["backend"], told["device"], told["rank"], told["world_size"]) == ("cpu:gloo,cuda:nccl", 1, 5, 8)
    assert told["environment"] == ["5", "8", "1", "4", "1", "127.0.0.1", str(gang.port)]
    assert told["crew"] == Crew(rank=5, size=8, local_size=4)


def test_a_rank_without_accelerators_takes_no_device(
    listener: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = joined(monkeypatch, tmp_path, replace(seat(listener, 1), listener=None), accelerators=False)
    assert told["backend"] == "gloo"
    assert "device" not in told


def lose_contact(*_: object, **__: object) -> None:
    raise RuntimeError("Gloo connectFullMesh failed with Connection closed by peer")


def test_a_rank_that_goes_while_the_others_join_is_a_loss_and_no_crash(
    listener: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.trainer.recipes.crew._set_environment", lambda _: None)
    monkeypatch.setattr(distributed, "init_process_group", lose_contact)
    context = RecipeContext(JobSpec(type="sft"), {}, tmp_path, None, Reports(), lambda: False, gang=seat(listener, 0))
    with ThreadPoolExecutor() as pool:
        pool.submit(come, seat(listener, 1))
        with pytest.raises(PeersLost, match="connectFullMesh"):
            meet(context)


def test_a_rank_that_goes_while_they_choose_a_precision_is_a_loss_and_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "all_reduce", lose_contact)
    with pytest.raises(PeersLost, match="connectFullMesh"):
        precision_for("auto", 512, Crew(rank=1, size=2))
