"""A job starts where its resources fit, and says why it does not."""

from __future__ import annotations

from services.scheduler.placement import GIB, Need, Node, Rooms, Use, uses_of
from shared.contracts.jobs import Place, Resources
from shared.contracts.nodes import Capacity, Device, Role


def a_node(
    name: str = "n1",
    devices: int = 0,
    cpus: float = 8,
    slots: int = 1,
    role: Role = Role.trainer,
    stopping: bool = False,
    memory_bytes: int = 64 * GIB,
) -> Node:
    has = [Device(index=index, kind="H100", memory_bytes=80 * GIB) for index in range(devices)]
    return Node(name, role, Capacity(cpus=cpus, memory_bytes=memory_bytes, devices=has, slots=slots), stopping)


def trainers(*nodes: Node, uses: list[Use] | None = None) -> Rooms:
    return Rooms.of(Role.trainer, nodes, uses or [])


def use(
    node: str = "n1", role: Role = Role.trainer, cpus: float = 1, memory: int = 0, devices: tuple[int, ...] = ()
) -> Use:
    return Use(node, role, cpus, memory, devices)


def test_devices_are_given_to_one_attempt_each() -> None:
    rooms = trainers(a_node(devices=3))
    first, second = rooms.find(Need(devices=2)), rooms.find(Need(devices=1))
    assert first
    assert second
    assert (first[0].devices, second[0].devices) == ([0, 1], [2])
    assert rooms.find(Need(devices=1)) is None


def test_devices_that_replicas_hold_are_not_given_to_trainers() -> None:
    rooms = trainers(a_node(devices=2), uses=[use(role=Role.inference, devices=(0,))])
    places = rooms.find(Need(devices=1))
    assert places
    assert places[0].devices == [1]
    assert rooms.find(Need(devices=1)) is None


def test_a_node_without_devices_runs_as_many_attempts_as_it_has_slots() -> None:
    rooms = trainers(a_node(slots=2), uses=[use()])
    assert rooms.find(Need())
    assert rooms.find(Need()) is None


def test_replicas_take_no_slots_and_no_cpus_of_trainers() -> None:
    rooms = trainers(a_node(cpus=1, slots=1), uses=[use(role=Role.inference, cpus=1)])
    assert rooms.find(Need(cpus=1))


def test_cpus_and_memory_must_fit() -> None:
    rooms = trainers(a_node(cpus=4, slots=9), uses=[use(cpus=3, memory=60 * GIB)])
    assert rooms.find(Need(cpus=2)) is None
    assert rooms.find(Need(cpus=1, memory_bytes=5 * GIB)) is None
    assert rooms.find(Need(cpus=1, memory_bytes=4 * GIB))


def test_no_devices_asked_means_one_where_any_node_has_some() -> None:
    mixed, plain = trainers(a_node("cpu"), a_node("gpu", devices=1)), trainers(a_node("cpu"))
    assert mixed.need(Resources(), wants_device=True).devices == 1
    assert plain.need(Resources(), wants_device=True).devices == 0
    assert mixed.need(Resources(), wants_device=False).devices == 0
    assert mixed.need(Resources(devices=0), wants_device=True).devices == 0


def test_a_gang_gets_nodes_of_its_own_all_or_none() -> None:
    rooms = trainers(a_node("a"), a_node("b"), a_node("c"), uses=[use("c")])
    assert rooms.find(Need(nodes=3)) is None
    places = rooms.find(Need(nodes=2))
    assert places
    assert [(place.node, place.rank) for place in places] == [("a", 0), ("b", 1)]


def gang(rooms: Rooms, **resources: int) -> list[tuple[str, int, list[int]]] | None:
    """The places of a training job, as (node, rank, devices)."""
    places = rooms.find(rooms.need(Resources(**resources), wants_device=True))
    return None if places is None else [(place.node, place.rank, place.devices) for place in places]


def test_a_gang_has_one_rank_for_every_device_of_every_node() -> None:
    nodes = a_node("a", devices=3), a_node("b", devices=2)
    assert gang(trainers(*nodes), nodes=2, devices=2) == [("a", 0, [0]), ("a", 1, [1]), ("b", 2, [0]), ("b", 3, [1])]
    assert gang(trainers(*nodes), nodes=2, devices=3) is None
    assert gang(trainers(*nodes, uses=[use("b", devices=(1,))]), nodes=2, devices=2) is None
    assert gang(trainers(*nodes), devices=3) == [("a", 0, [0]), ("a", 1, [1]), ("a", 2, [2])]


def test_without_devices_a_node_runs_as_many_ranks_as_are_asked_for_and_they_are_one_attempt() -> None:
    rooms = trainers(a_node("a", cpus=1, slots=1), a_node("b", cpus=1, slots=1))
    assert gang(rooms, nodes=2, ranks_per_node=2) == [("a", 0, []), ("a", 1, []), ("b", 2, []), ("b", 3, [])]
    assert rooms.full


def test_ranks_take_a_device_each_where_there_are_any() -> None:
    assert gang(trainers(a_node(devices=4)), ranks_per_node=2) == [("n1", 0, [0]), ("n1", 1, [1])]
    assert gang(trainers(a_node(devices=4)), ranks_per_node=2, devices=0) == [("n1", 0, []), ("n1", 1, [])]


def test_a_replica_is_one_whatever_its_devices() -> None:
    rooms = Rooms.of(Role.inference, [a_node(devices=4, role=Role.inference)], [])
    places = rooms.find(rooms.need(Resources(devices=4), wants_device=True))
    assert places
    assert [place.devices for place in places] == [[0, 1, 2, 3]]


def test_an_attempt_holds_its_processors_and_memory_once_a_node_however_many_its_ranks() -> None:
    places = [Place(node="a", rank=0, devices=[2]), Place(node="a", rank=1, devices=[3]), Place(node="b", rank=2)]
    assert uses_of(Resources(cpus=3, memory_bytes=5), places) == [
        Use("a", Role.trainer, 3, 5, [2, 3]),
        Use("b", Role.trainer, 3, 5, []),
    ]


def test_the_least_loaded_node_is_taken() -> None:
    places = trainers(a_node("a", slots=9), a_node("b", slots=9), uses=[use("a")]).find(Need())
    assert places
    assert places[0].node == "b"


def test_the_node_with_the_files_is_preferred_and_one_that_did_not_start_it_avoided() -> None:
    nodes = a_node("a", slots=9), a_node("b", slots=9)
    preferred = trainers(*nodes, uses=[use("b")]).find(Need(), prefer=["b"])
    avoided = trainers(*nodes, uses=[use("b")]).find(Need(), prefer=["a"], avoid=["a"])
    assert preferred
    assert avoided
    assert preferred[0].node == avoided[0].node == "b"


def test_a_stopping_node_takes_nothing_new() -> None:
    assert trainers(a_node(stopping=True)).find(Need()) is None


def test_held_back_nodes_are_kept_for_the_one_that_waits() -> None:
    rooms = trainers(a_node("a"), a_node("b"), uses=[use("b")])
    assert rooms.find(Need(nodes=2)) is None
    rooms.hold_back(Need(nodes=2))
    assert rooms.find(Need()) is None


def test_what_can_never_fit_says_why() -> None:
    rooms = trainers(a_node("a", devices=2, cpus=8), a_node("b", cpus=4))
    assert trainers().why_never(Need()) == "waits for a trainer node"
    assert rooms.why_never(Need(devices=4)) == "needs 4 devices; the largest node has 2"
    assert rooms.why_never(Need(cpus=64)) == "needs 64 CPUs; the largest node has 8"
    assert rooms.why_never(Need(memory_bytes=100 * GIB)) == "needs 100.0 GiB of memory; the largest node has 64.0"
    assert rooms.why_never(Need(nodes=3)) == "needs 3 such nodes at once; there are 2"
    assert rooms.why_never(Need(nodes=2)) is None


def test_a_full_node_is_no_reason_to_say_never() -> None:
    rooms = trainers(a_node(devices=1), uses=[use(devices=(0,))])
    assert rooms.find(Need(devices=1)) is None
    assert rooms.why_never(Need(devices=1)) is None
