"""What a rank knows of the others before they meet, and after it has ended."""

from __future__ import annotations

import math
import socket
import threading

import pytest

from services.trainer import protocol
from services.trainer.endings import StopOrder
from services.trainer.gang import (
    PEERS_WORD_S,
    Gathering,
    devices_of,
    meeting_address,
    own_address,
    patience_s,
    ranks_beside,
    reserve_port,
    seat,
)
from services.trainer.transfers import Aborted
from shared.contracts.jobs import DesiredAttempt, JobSpec, Place, Wish
from shared.settings import Settings, SettingsError, load_settings
from tests.waiting import eventually

DONE, HALTED = protocol.Done([]), protocol.Halted()
LOST = protocol.Failed("lost", "it lost contact", retryable=True)
BAD_DATA = protocol.Failed("bad_data", "line 3 is no JSON", retryable=False)
SETTINGS = Settings(gang_timeout_s=5, gang_backend="gloo")
EIGHT = [
    *(Place(node="n1", rank=rank, devices=[4 + rank]) for rank in range(4)),
    *(Place(node="n2", rank=4 + rank, devices=[2 * rank]) for rank in range(4)),
]
CRASHED = protocol.Failed("crashed", "ValueError", retryable=True)


def desired(attempt: int = 1, accepted: tuple[int, ...] = (), meeting: str = "") -> DesiredAttempt:
    return DesiredAttempt(
        job_id="j",
        attempt=attempt,
        version=1,
        spec=JobSpec(type="probe"),
        places=[Place(node="n1"), Place(node="n2", rank=1)],
        wish=Wish.run,
        accepted={rank: f"run-{rank}" for rank in accepted},
        meeting=meeting,
    )


@pytest.mark.parametrize(
    "news",
    [
        desired(accepted=(0,), meeting="here:1"),
        desired(accepted=(0, 1)),
        desired(attempt=2, accepted=(0, 1), meeting="here:1"),
    ],
    ids=["a rank is missing", "nobody says where", "another attempt"],
)
def test_no_rank_begins_before_all_are_accepted_and_know_where_to_meet(news: DesiredAttempt) -> None:
    gathering = Gathering(desired())
    gathering.told(news)
    gathering.abandon()
    with pytest.raises(Aborted):
        gathering.wait()


def test_all_ranks_begin_once_they_are_accepted() -> None:
    gathering, met = Gathering(desired()), list[str]()
    waiting = threading.Thread(target=lambda: met.append(gathering.wait()))
    waiting.start()
    gathering.told(desired(accepted=(0, 1), meeting="here:1"))
    eventually(lambda: met == ["here:1"])
    waiting.join()


def test_each_attempt_has_a_rendezvous_of_its_own() -> None:
    first, second = (seat(each, each.places[1], "here:1", SETTINGS) for each in (desired(1), desired(2)))
    assert (first.meeting, first.timeout_s, first.backend) == ("here:1", 5, "gloo")
    assert (first.rendezvous, second.rendezvous) == ("j/1", "j/2")


def test_ranks_are_numbered_over_all_nodes_and_on_each_node_as_torchrun_has_them() -> None:
    attempt = desired().changed(places=EIGHT)
    seats = [seat(attempt, place, "here:1", SETTINGS) for place in EIGHT]
    assert [each.rank for each in seats] == list(range(8))
    assert [each.local_rank for each in seats] == [0, 1, 2, 3, 0, 1, 2, 3]
    assert [each.node_rank for each in seats] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert {(each.size, each.local_size) for each in seats} == {(8, 4)}


def test_each_rank_sees_all_devices_of_its_nodes_ranks_its_own_at_its_local_rank() -> None:
    attempt = desired().changed(places=EIGHT)
    for place in EIGHT:
        devices = devices_of(ranks_beside(attempt, place))
        assert devices == ([4, 5, 6, 7] if place.node == "n1" else [0, 2, 4, 6])
        assert [devices[seat(attempt, place, "here:1", SETTINGS).local_rank]] == place.devices


def test_ranks_that_are_all_on_one_host_meet_there_and_others_where_all_reach_it() -> None:
    here = desired().changed(places=EIGHT[:4])
    elsewhere = Settings(bus_url="kafka://elsewhere.invalid:9092", advertise_address="gpu-1.lan")
    assert meeting_address(here, elsewhere) == "127.0.0.1"
    assert meeting_address(desired(), elsewhere) == "gpu-1.lan"


@pytest.mark.parametrize(
    ("rank", "said", "wish", "patience"),
    [
        (1, DONE, "", math.inf),
        (1, DONE, Wish.pause, math.inf),
        (1, DONE, Wish.none, 0),
        (0, DONE, "", 0),
        (1, HALTED, "", PEERS_WORD_S),
        (1, HALTED, Wish.pause, math.inf),
        (1, LOST, Wish.pause, math.inf),
        (1, None, Wish.pause, math.inf),
        (1, HALTED, Wish.none, 0),
        (0, HALTED, Wish.pause, 0),
        (0, None, Wish.pause, 0),
        (0, LOST, "", PEERS_WORD_S),
        (0, LOST, Wish.none, 0),
        (1, BAD_DATA, "", 0),
        (1, CRASHED, "", 0),
        (1, None, "", 0),
    ],
)
def test_only_a_rank_whose_end_another_explains_waits_for_it(
    rank: int, said: protocol.Report | None, wish: Wish | str, patience: float
) -> None:
    order = StopOrder(Wish(wish)) if wish else None
    assert patience_s(rank, said, order) == patience


def test_a_finished_rank_does_not_keep_its_node_from_stopping() -> None:
    assert patience_s(1, DONE, StopOrder(None)) == 0


@pytest.mark.parametrize(
    ("settings", "address"),
    [
        ({"bus_url": "memory://"}, "127.0.0.1"),
        ({"bus_url": "valkey+unix:///tmp/bus.sock"}, "127.0.0.1"),
        ({"bus_url": "kafka://127.0.0.1:9092,127.0.0.2:9092"}, "127.0.0.1"),
        ({"bus_url": "kafkas://user:a,b[c@127.0.0.1,127.0.0.2:9092?sasl=PLAIN"}, "127.0.0.1"),
        ({"bus_url": "kafka://[::1]:9092"}, "::1"),
        ({"bus_url": "valkey://user:secret@127.0.0.1:6379"}, "127.0.0.1"),
        ({"bus_url": "valkey://user:a,b@127.0.0.1:6379"}, "127.0.0.1"),
        ({"bus_url": "kafka://elsewhere.invalid:9092", "advertise_address": "gpu-1.lan"}, "gpu-1.lan"),
    ],
)
def test_others_reach_a_node_at_its_end_of_the_way_to_the_bus_or_as_set(settings: dict[str, str], address: str) -> None:
    assert own_address(Settings.model_validate(settings)) == address


@pytest.mark.parametrize("address", ["gpu-1", "gpu-1.lan", "10.0.0.7", "fd00::7", "fe80::7%eth0"])
def test_an_address_to_reach_a_node_at_is_a_name_or_an_address(address: str) -> None:
    assert own_address(Settings(advertise_address=address)) == address


@pytest.mark.parametrize("address", ["gpu..lan", "x" * 64, "tcp://gpu-1", "gpu-1:9000", "gpu 1"])
def test_an_address_that_no_host_can_have_stops_the_start(address: str) -> None:
    with pytest.raises(SettingsError, match="LLMOS_ADVERTISE_ADDRESS"):
        load_settings(advertise_address=address)


def test_a_bus_that_cannot_be_found_is_an_error_of_the_network() -> None:
    with pytest.raises(socket.gaierror):
        own_address(Settings(bus_url="kafka://elsewhere.invalid:9092"))


def test_every_gang_has_a_port_of_its_own_where_nobody_answers_yet() -> None:
    with reserve_port("127.0.0.1") as one, reserve_port("127.0.0.1") as other:
        assert one.getsockname()[0] == "127.0.0.1"
        assert one.getsockname()[1] != other.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(one.getsockname(), timeout=5)


def test_an_address_of_another_host_is_one_that_is_translated_to_this() -> None:
    with reserve_port("192.0.2.1") as listener:
        assert listener.getsockname()[0] == "0.0.0.0"  # what is looked for
