"""Where a job or a replica fits: pure arithmetic over what nodes have and what is in use. No counters are kept.

Devices and memory of a machine are shared by its trainer and its inference agent. CPUs are counted within a role: they
stretch, so a deployment does not keep a laptop from training. `slots` bounds the attempts that use no device.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from shared.contracts.jobs import Place, Resources
from shared.contracts.nodes import Capacity, Role

GIB = 2**30


@dataclass(frozen=True)
class Node:
    """A live node as its heartbeats describe it. One that is stopping keeps its use but takes nothing new."""

    name: str
    role: Role
    capacity: Capacity
    stopping: bool = False


@dataclass(frozen=True)
class Use:
    """What one attempt or one replica holds on a node."""

    node: str
    role: Role
    cpus: float
    memory_bytes: int
    devices: Sequence[int] = ()


def uses_of(wants: Resources, places: Iterable[Place]) -> list[Use]:
    """What an attempt holds: on each node once, however many of its ranks are there."""
    devices: defaultdict[str, list[int]] = defaultdict(list)
    for place in places:
        devices[place.node] += place.devices
    return [Use(node, Role.trainer, wants.cpus, wants.memory_bytes, held) for node, held in devices.items()]


@dataclass(frozen=True)
class Need:
    """What is asked of each of `nodes` nodes. Its `ranks` there share the devices evenly."""

    cpus: float = 1
    memory_bytes: int = 0
    devices: int = 0
    nodes: int = 1
    ranks: int = 1


@dataclass
class Room:
    """What is free on one node, for one role."""

    node: str
    capacity: Capacity
    cpus: float
    memory_bytes: int
    devices: list[int]
    slots: int
    uses: int = 0

    def fits(self, need: Need) -> bool:
        return (
            need.devices <= len(self.devices)
            and need.cpus <= self.cpus
            and need.memory_bytes <= self.memory_bytes
            and (need.devices > 0 or self.slots > 0)
        )

    def take(self, cpus: float, memory_bytes: int, devices: Collection[int], same_role: bool = True) -> None:
        self.memory_bytes -= memory_bytes
        self.devices = [index for index in self.devices if index not in devices]
        if same_role:
            self.cpus -= cpus
            self.slots -= not devices
            self.uses += 1


@dataclass
class Rooms:
    """What is free on all nodes of a role, at this moment. Placing something takes from it."""

    role: Role
    rooms: list[Room]
    held_back: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, role: Role, nodes: Iterable[Node], uses: Iterable[Use]) -> Rooms:
        rooms = {node.name: _empty(node) for node in nodes if node.role is role and not node.stopping}
        for use in uses:
            if room := rooms.get(use.node):
                room.take(use.cpus, use.memory_bytes, use.devices, same_role=use.role is role)
        return cls(role, sorted(rooms.values(), key=lambda room: room.node))

    @property
    def any_devices(self) -> bool:
        return any(room.capacity.devices for room in self.rooms)

    @property
    def full(self) -> bool:
        """Nothing that takes a slot or a device fits anywhere."""
        return not any(room.slots > 0 or room.devices for room in self.rooms)

    def need(self, resources: Resources, wants_device: bool) -> Need:
        """Where nobody said how many devices: some only where any node has them and the work can use them.

        A replica is one rank, whatever its devices: its engine shares them out.
        """
        devices = resources.devices_where_there_are_any()
        if resources.devices is None and not (wants_device and self.any_devices):
            devices = 0
        ranks = resources.ranks_with(devices) if self.role is Role.trainer else 1
        return Need(resources.cpus, resources.memory_bytes, devices, resources.nodes, ranks)

    def find(
        self,
        need: Need,
        prefer: Collection[str] = (),
        avoid: Collection[str] = (),
        never: Collection[str] = (),
        largest_first: bool = False,
    ) -> list[Place] | None:
        """A place per rank, on as many nodes as are needed, or None: all or nothing.

        `prefer` names nodes that have its files at hand, `avoid` such as did not take it up the last time, `never` such
        as cannot run it.
        """
        closed = {*self.held_back, *never}
        fitting = [room for room in self.rooms if room.node not in closed and room.fits(need)]
        if len(fitting) < need.nodes:
            return None
        fitting.sort(key=lambda room: (room.node in avoid, room.node not in prefer, room.uses, room.node))
        if largest_first:
            fitting.sort(key=lambda room: _size(room.capacity), reverse=True)
        taken = enumerate(fitting[: need.nodes])
        return [place for number, room in taken for place in _take(room, need, number * need.ranks)]

    def hold_back(self, need: Need) -> None:
        """Keep nodes that could take this need for it: nothing else starts there until it does."""
        able = [room for room in self.rooms if _fits_empty(room.capacity, need)]
        able.sort(key=lambda room: (room.uses, room.node))
        self.held_back.update(room.node for room in able[: need.nodes])

    def why_never(self, need: Need) -> str | None:
        """Why no known node could take it even if it were empty; None where one could."""
        able = [room for room in self.rooms if _fits_empty(room.capacity, need)]
        if len(able) >= need.nodes:
            return None
        what = "a trainer node" if self.role is Role.trainer else "an inference node"
        if not self.rooms:
            return f"waits for {what}"
        if able:
            return f"needs {need.nodes} such nodes at once; there are {len(able)}"
        capacities = [room.capacity for room in self.rooms]
        devices = max(len(capacity.devices) for capacity in capacities)
        if need.devices > devices:
            return f"needs {need.devices} devices; the largest node has {devices}"
        cpus = max(capacity.cpus for capacity in capacities)
        if need.cpus > cpus:
            return f"needs {need.cpus:g} CPUs; the largest node has {cpus:g}"
        memory = max(capacity.memory_bytes for capacity in capacities)
        if need.memory_bytes > memory:
            return f"needs {need.memory_bytes / GIB:.1f} GiB of memory; the largest node has {memory / GIB:.1f}"
        return "no node has the CPUs, the memory and the devices that it needs together"


def _take(room: Room, need: Need, first_rank: int) -> list[Place]:
    """The places of the node's ranks, with a device each where they have any."""
    devices, each = room.devices[: need.devices], need.devices // need.ranks
    room.take(need.cpus, need.memory_bytes, devices)
    return [
        Place(node=room.node, rank=first_rank + number, devices=devices[number * each : (number + 1) * each])
        for number in range(need.ranks)
    ]


def _empty(node: Node) -> Room:
    capacity = node.capacity
    # Replicas have no slots: the agent starts as many as CPUs and memory allow.
    slots = capacity.slots if node.role is Role.trainer else 1_000_000
    devices = sorted(device.index for device in capacity.devices)
    return Room(node.name, capacity, capacity.cpus, capacity.memory_bytes, devices, slots)


def _size(capacity: Capacity) -> tuple[int, int]:
    """How large a model it may hold: the memory of its largest device, then its own."""
    return max((device.memory_bytes for device in capacity.devices), default=0), capacity.memory_bytes


def _fits_empty(capacity: Capacity, need: Need) -> bool:
    return (
        need.devices <= len(capacity.devices)
        and need.cpus <= capacity.cpus
        and need.memory_bytes <= capacity.memory_bytes
    )
