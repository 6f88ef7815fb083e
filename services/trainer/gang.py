"""Several ranks, one attempt: where they meet, when they may begin, and what one does while the others decide."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable
from urllib.parse import urlsplit

from services.trainer import protocol
from services.trainer.endings import StopOrder
from services.trainer.transfers import Aborted
from shared.contracts.jobs import DesiredAttempt, FailureReason, Place, Wish
from shared.kafka.address import TLS, Address
from shared.settings import Settings

PEERS_WORD_S = 15.0
"""A rank that ended on account of another gives that one's word so long to bring an order to stop."""
LOOPBACK = "127.0.0.1"
ANY_PORT = 9
"""Of a UDP socket that is only asked for its way; nothing is sent."""


class Gathering:
    """Whether all ranks are there. Told by the agent's thread, awaited by the mover's."""

    def __init__(self, desired: DesiredAttempt) -> None:
        self._news = threading.Condition()
        self._attempt = desired.attempt
        self._size = len(desired.places)
        self._meeting = ""
        self._abandoned = False

    def told(self, desired: DesiredAttempt) -> None:
        """What is wished now."""
        if desired.attempt == self._attempt and desired.meeting and len(desired.accepted) == self._size:
            with self._news:
                self._meeting = desired.meeting
                self._news.notify_all()

    def abandon(self) -> None:
        with self._news:
            self._abandoned = True
            self._news.notify_all()

    def wait(self) -> str:
        """Where they meet, once every rank was accepted. Raises Aborted.

        It waits as long as the scheduler does: that loses an attempt of which a rank is not taken up.
        """
        with self._news:
            self._news.wait_for(lambda: self._meeting or self._abandoned)
            if self._abandoned:
                raise Aborted
            return self._meeting


def seat(desired: DesiredAttempt, place: Place, meeting: str, settings: Settings) -> protocol.Gang:
    """What the child of the rank at `place` is told."""
    mates = ranks_beside(desired, place)
    nodes = list(dict.fromkeys(each.node for each in _in_order(desired)))
    return protocol.Gang(
        rank=place.rank,
        size=len(desired.places),
        local_rank=mates.index(place),
        local_size=len(mates),
        node_rank=nodes.index(place.node),
        meeting=meeting,
        rendezvous=f"{desired.job_id}/{desired.attempt}",
        timeout_s=settings.gang_timeout_s,
        backend=settings.gang_backend,
    )


def ranks_beside(desired: DesiredAttempt, place: Place) -> list[Place]:
    """The attempt's ranks on the node of `place`, itself included."""
    return [each for each in _in_order(desired) if each.node == place.node]


def devices_of(ranks: Iterable[Place]) -> list[int]:
    """All devices of one node's ranks, in the order of the ranks: each sees them all, and takes that of its own number.

    Ranks that saw their own alone would keep some libraries from moving data between devices directly.
    """
    return [device for rank in ranks for device in rank.devices]


def meeting_address(desired: DesiredAttempt, settings: Settings) -> str:
    """Where rank 0 listens: on this host alone, where all ranks are here. Raises OSError."""
    return own_address(settings) if len({place.node for place in desired.places}) > 1 else LOOPBACK


def patience_s(rank: int, said: object, order: StopOrder | None) -> float:
    """How long a rank that has ended still counts as running, waiting for the order that says how the attempt ended.

    A rank that is done, or that pauses, waits for rank 0 to upload what all have made: its end would look like a loss.
    One that broke off since another did lets that one say why.
    """
    if rank > 0 and order is not None and order.wish is Wish.pause:
        return float("inf")  # killed after the grace or not: rank 0's end, its loss or an overdue stop ends the wish
    match said:
        case protocol.Done() if rank > 0 and order is None:
            return float("inf")
        case protocol.Halted() if order is None:
            return PEERS_WORD_S
        case protocol.Failed(reason=FailureReason.lost) if order is None:
            return PEERS_WORD_S
    return 0


def own_address(settings: Settings) -> str:
    """This host as the other nodes see it: as set, else its end of the way to the bus, which they all reach.

    Raises OSError.
    """
    if settings.advertise_address:
        return settings.advertise_address
    bus = _bus_host(settings.bus_url)
    return _near_end(bus) if bus else LOOPBACK


def reserve_port(address: str) -> socket.socket:
    """A socket bound to a free port: of `address` alone where this host has it, else of all (the others may come by a
    translated one). It is left to the child to listen: until then who calls is refused. Raises OSError."""
    family, kind, _, _, place = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind)
    try:
        try:
            listener.bind(place)
        except OSError:
            listener.bind(("", 0))
    except OSError:
        listener.close()
        raise
    return listener


def _in_order(desired: DesiredAttempt) -> list[Place]:
    return sorted(desired.places, key=lambda place: place.rank)


def _bus_host(url: str) -> str | None:
    """The first of its servers; none where the bus is on this host alone."""
    if url.partition("://")[0] not in TLS:
        return urlsplit(url).hostname
    host, _, _ = Address.parse(url).servers[0].rpartition(":")
    return host.strip("[]")


def _near_end(host: str) -> str:
    family, kind, _, _, place = socket.getaddrinfo(host, ANY_PORT, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as way:
        way.connect(place)
        return str(way.getsockname()[0])
