"""A keeper notices every way in which a life of its replica goes wrong, counts it and says why."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from services.inference import keeper
from services.inference.adapter_folders import AdapterFolders
from services.inference.control import Phase, ReplicaSpec, Report, Wishes
from services.inference.domain import Seat
from services.inference.keeper import Keeper, Node
from services.inference.leftovers import Leftovers
from services.inference.pulling import OnPercent, OnTrouble, Puller
from services.inference.standing import Standing
from shared.contracts.artifacts import ArtifactKind, ArtifactPin, Manifest
from shared.contracts.deployments import DeploymentSpec, ReplicaPlace, ReplicaState, ReplicaStatus
from shared.contracts.nodes import Capacity
from shared.settings import Settings
from tests.waiting import aeventually

MODEL = ArtifactPin(name="m", version=1, kind=ArtifactKind.model, manifest_key="m")
ADAPTER = ArtifactPin(name="a", version=1, kind=ArtifactKind.adapter, manifest_key="a")
SEAT = Seat("chat", "default", 1, ReplicaPlace(replica_id="r1", node="n1"), DeploymentSpec(model=MODEL, engine="echo"))


class FakePuller(Puller):
    """Has every version at once, but those in `broken`."""

    def __init__(self) -> None:
        self.broken: set[str] = set()
        self.asked: list[str] = []

    async def manifest(self, pin: ArtifactPin, on_trouble: OnTrouble) -> Manifest:
        self.asked.append(pin.ref)
        if pin.ref in self.broken:
            raise RuntimeError("nobody thought of this")
        return Manifest(files=[])

    async def pull(self, pin: ArtifactPin, size_bytes: int, on_percent: OnPercent, on_trouble: OnTrouble) -> Path:
        return Path("/") / pin.ref

    def release(self, folder: Path) -> None: ...


class FakeProcess:
    """Says and does what a test tells it."""

    def __init__(self) -> None:
        self.pid = 0
        self.says: asyncio.Queue[Report | Exception | None] = asyncio.Queue()
        self.exit: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def reports(self) -> AsyncIterator[Report]:
        while (said := await self.says.get()) is not None:
            if isinstance(said, Exception):
                raise said
            yield said

    def wish(self, wishes: Wishes) -> None: ...

    async def ended(self) -> int:
        return await asyncio.shield(self.exit)

    async def kill(self) -> None:
        if not self.exit.done():
            self.exit.set_result(-9)

    def close(self) -> None: ...

    def log_tail(self) -> list[str]:
        return ["ValueError: from its log"]

    def loading_percent(self) -> float | None:
        return None

    def bound_log(self) -> None: ...


class World:
    """A keeper at work, the processes it started and what it said."""

    def __init__(self, home: Path) -> None:
        self.puller = FakePuller()
        self.processes: list[FakeProcess] = []
        self.said: list[ReplicaStatus] = []
        settings = Settings(home=home, node="n1", replica_max_crashes=2)
        capacity, leftovers = Capacity(cpus=1, memory_bytes=1), Leftovers(home / "replicas")
        node = Node(settings, capacity, self.puller, self._launch, leftovers, lambda: 1)
        self._keeper = Keeper(SEAT, node, Standing(SEAT, "n1", self._say))
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._running = asyncio.create_task(self._keeper.run())

    async def stop(self) -> None:
        self._keeper.retire()
        for process in self.processes:
            await process.kill()
        if self._running:
            await asyncio.wait_for(self._running, 10)

    async def process(self, number: int) -> FakeProcess:
        await aeventually(lambda: len(self.processes) >= number, what=f"start {number}")
        return self.processes[number - 1]

    async def failed(self) -> str:
        """Why it was given up, once it is."""
        await aeventually(lambda: self.said and self.said[-1].state is ReplicaState.failed, what="failed")
        return self.said[-1].reason

    async def _launch(self, spec: ReplicaSpec) -> FakeProcess:
        self.processes.append(FakeProcess())
        return self.processes[-1]

    def _say(self, replica_id: str, status: ReplicaStatus | None) -> None:
        assert status is not None
        self.said.append(status)


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    def at_once(crashes: int) -> float:
        return 0

    monkeypatch.setattr(keeper, "pause_s", at_once)
    monkeypatch.setattr(keeper, "LAST_WORDS_S", 0.2)
    world = World(tmp_path)
    yield world
    await world.stop()


async def test_an_error_that_nobody_foresaw_counts_as_a_crash(world: World) -> None:
    world.puller.broken = {MODEL.ref}
    world.start()
    assert "nobody thought of this" in await world.failed()
    assert world.puller.asked == [MODEL.ref] * 2


async def test_a_replica_that_cannot_be_understood_is_started_again_and_says_why(world: World) -> None:
    world.start()
    for number in (1, 2):
        process = await world.process(number)
        process.says.put_nowait(Report(Phase.ready))
        process.says.put_nowait(msgspec.DecodeError("no JSON"))
    assert await world.failed() == "its line broke: no JSON"


async def test_a_replica_whose_line_closes_before_it_ends_is_judged_by_its_end(world: World) -> None:
    world.start()
    for number in (1, 2):
        process = await world.process(number)
        process.says.put_nowait(None)
        await aeventually(process.says.empty)
        process.exit.set_result(1)
    assert await world.failed() == "ValueError: from its log"


async def test_a_broken_replica_that_closes_its_line_and_lingers_is_believed(world: World) -> None:
    world.start()
    process = await world.process(1)
    process.says.put_nowait(Report(Phase.broken, reason="no such argument"))
    process.says.put_nowait(None)
    assert await world.failed() == "no such argument"
    assert len(world.processes) == 1


async def test_what_breaks_the_supply_of_adapters_is_raised_and_what_is_wanted_later_still_comes() -> None:
    puller = FakePuller()
    folders = AdapterFolders(puller, nothing_failed)
    told: list[Wishes] = []
    bringing = asyncio.create_task(folders.bring({}, told.append))
    await aeventually(lambda: told)
    folders.want({ADAPTER.ref: ADAPTER})
    await aeventually(lambda: told[-1].adapters == {ADAPTER.ref: f"/{ADAPTER.ref}"})
    puller.broken = {"b@1"}
    folders.want({"b@1": ADAPTER.changed(name="b")})
    with pytest.raises(RuntimeError, match="nobody thought"):
        await asyncio.wait_for(bringing, 10)


def nothing_failed() -> None:
    raise AssertionError("no pull has failed")
