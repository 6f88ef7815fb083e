"""The ranks that train together through torch.distributed, and what they must agree on.

One rank alone is a crew too, and asks nobody. Ranks must ask the same things in the same order.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import psutil
import torch
from torch import distributed

from services.trainer.recipes.api import Gang, PeersLost, RecipeContext, RecipeError, Stopped
from shared.contracts.jobs import FailureReason

CALL_S = 5.0
"""How long one knock at the meeting place may take."""
GLANCE_S = 0.1
LOST_CONTACT = ("gloo", "nccl", "connection closed by peer", "connection reset by peer")
"""What a collective says when another rank is gone."""


@dataclass(frozen=True)
class Crew:
    """Figures go over the processor (gloo), so that asking does not wait for an accelerator."""

    rank: int = 0
    size: int = 1
    local_size: int = 1
    """How many of them share this machine."""

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def total(self, *figures: int) -> list[int]:
        """Each figure, added up over all ranks."""
        return self._reduced(figures, distributed.ReduceOp.SUM)

    def least(self, figure: int) -> int:
        """The smallest of all ranks."""
        return self._reduced((figure,), distributed.ReduceOp.MIN)[0]

    def any(self, yes: bool) -> bool:
        """Whether it is so for any rank."""
        return self.total(int(yes))[0] > 0

    def alike(self, mine: str) -> None:
        """Raises RuntimeError where another rank has something else."""
        others: list[str] = [mine] * self.size
        if self.size > 1:
            distributed.all_gather_object(others, mine)
        if other := next((other for other in others if other != mine), None):
            raise RuntimeError(f"The ranks have prepared different data: here {mine}; elsewhere {other}")

    def gathered(self, mine: bytes) -> list[bytes]:
        """What every rank has, in their order. Only rank 0 is given it; the others get nothing."""
        if self.size == 1:
            return [mine]
        found: list[bytes] | None = [b""] * self.size if self.leads else None
        distributed.gather_object(mine, found)
        return found or []

    @contextmanager
    def noticing_loss(self) -> Iterator[None]:
        """Tells the loss of another rank from this rank's own troubles. Raises PeersLost."""
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not is_lost_contact(error):
                raise
            raise PeersLost(f"it lost contact to the other ranks: {error}") from error

    def _reduced(self, figures: tuple[int, ...], how: distributed.ReduceOp.RedOpType) -> list[int]:
        if self.size == 1:
            return list(figures)
        tensor = torch.tensor(figures, dtype=torch.int64)
        distributed.all_reduce(tensor, how)
        return [int(figure) for figure in tensor]


def is_lost_contact(error: RuntimeError) -> bool:
    """Whether a collective or the store failed, rather than the computation."""
    said = str(error).lower()
    return isinstance(error, distributed.DistError) or any(sign in said for sign in LOST_CONTACT)


def meet(context: RecipeContext) -> Crew:
    """Wait for all ranks of the gang, and join them in torch's process group.

    Raises PeersLost, Stopped, or RecipeError where the backend that was set cannot work here.
    """
    gang = context.gang
    if gang is None:
        return Crew()
    crew = Crew(gang.rank, gang.size, gang.local_size)
    if not distributed.is_initialized():
        backend = backend_for(gang.backend, torch.cuda.is_available())
        if torch.cuda.is_available():
            torch.cuda.set_device(gang.local_rank)
        _set_environment(gang)
        deadline_s = time.monotonic() + gang.timeout_s
        store = _meeting_place(gang, deadline_s, context.stopping)
        _await_all(distributed.PrefixStore(f"{gang.rendezvous}/here", store), gang, deadline_s, context.stopping)
        with crew.noticing_loss():
            distributed.init_process_group(
                backend,
                store=distributed.PrefixStore(gang.rendezvous, store),
                rank=gang.rank,
                world_size=gang.size,
                timeout=timedelta(seconds=gang.timeout_s),
            )
    return crew


def backend_for(wanted: str, accelerators: bool) -> str:
    """torch's name of the backend. Figures that ranks agree on go over gloo beside any other. Raises RecipeError."""
    if wanted == "nccl" and not accelerators:
        raise RecipeError(
            FailureReason.bad_params,
            "The trainer has LLMOS_GANG_BACKEND=nccl, which works between accelerators only, and this rank has none",
            "Ask for devices (resources.devices), or set LLMOS_GANG_BACKEND to auto.",
            "resources.devices",
        )
    return "cpu:gloo,cuda:nccl" if accelerators and wanted != "gloo" else "gloo"


def _set_environment(gang: Gang) -> None:
    """Of what torchrun sets, what does not speak of its agent: for all who look there (accelerate among them)."""
    os.environ.update(
        MASTER_ADDR=gang.host,
        MASTER_PORT=str(gang.port),
        RANK=str(gang.rank),
        WORLD_SIZE=str(gang.size),
        LOCAL_RANK=str(gang.local_rank),
        LOCAL_WORLD_SIZE=str(gang.local_size),
        GROUP_RANK=str(gang.node_rank),
        TORCHELASTIC_RUN_ID=gang.rendezvous,
    )
    if interface := _interface_towards(gang.host, gang.port):
        # By default gloo takes the address of the host's own name, which may be one that only this host knows.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


def _meeting_place(gang: Gang, deadline_s: float, stopping: Callable[[], bool]) -> distributed.TCPStore:
    """Rank 0 opens it on the port that its trainer has reserved; the others knock until it is open."""
    where = f"{gang.host}:{gang.port}"
    while gang.rank > 0 and not _is_open(gang):
        _wait_a_little(stopping, deadline_s, f"rank 0 did not open {where} within {gang.timeout_s:g} s")
    try:
        return distributed.TCPStore(
            gang.host,
            gang.port,
            is_master=gang.rank == 0,
            timeout=timedelta(seconds=gang.timeout_s),
            wait_for_workers=False,
            master_listen_fd=gang.listener,
        )
    except distributed.DistError as error:
        raise PeersLost(f"the ranks cannot meet at {where}: {error}") from error


def _is_open(gang: Gang) -> bool:
    """torch would wait inside itself, where no signal is heard."""
    try:
        socket.create_connection((gang.host, gang.port), timeout=CALL_S).close()
    except OSError:
        return False
    return True


def _await_all(here: distributed.PrefixStore, gang: Gang, deadline_s: float, stopping: Callable[[], bool]) -> None:
    try:
        here.set(str(gang.rank), "here")
        missing = list(range(gang.size))
        while missing := [rank for rank in missing if not here.check([str(rank)])]:
            ranks = ", ".join(map(str, missing))
            late = f"of its {gang.size} ranks these did not come within {gang.timeout_s:g} s: {ranks}"
            _wait_a_little(stopping, deadline_s, late)
    except distributed.DistError as error:
        raise PeersLost(f"rank 0 went away before all ranks had come: {error}") from error


def _wait_a_little(stopping: Callable[[], bool], deadline_s: float, late: str) -> None:
    """Raises Stopped, or PeersLost when it is too late to wait on."""
    if stopping():
        raise Stopped
    if time.monotonic() > deadline_s:
        raise PeersLost(late)
    time.sleep(GLANCE_S)


def _interface_towards(host: str, port: int) -> str | None:
    """The network interface through which this host reaches another; None where none has that address."""
    try:
        family, kind, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as way:
            way.connect(place)
            mine = way.getsockname()[0]
    except OSError:
        return None
    interfaces = psutil.net_if_addrs().items()
    return next((name for name, addresses in interfaces if any(each.address == mine for each in addresses)), None)
