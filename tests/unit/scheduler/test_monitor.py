"""What Prometheus is told is true when it matters: when nodes die, the bus is away, or another leads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from services.scheduler.comparison import Comparison
from services.scheduler.leadership import FileLeadership
from services.scheduler.liveness import Liveness
from services.scheduler.main import lead
from services.scheduler.metrics import forget
from services.scheduler.monitor import MEASURE_S, Monitor
from services.scheduler.outbox import Outbox
from services.scheduler.truth import Truth, take_over
from shared.bus.memory import MemoryBus
from shared.bus.port import BusUnavailable
from shared.contracts.nodes import Capacity, NodeHeartbeat, Role
from shared.contracts.topics import JOBS_STATE
from shared.db import open_database
from shared.doorbell.memory import MemoryDoorbell
from shared.settings import Settings
from shared.stopping import Stop
from tests.databases import NewDatabase
from tests.unit.scheduler.clock import FakeClock
from tests.unit.scheduler.jobs import NOW, a_job

SILENCE_S = 30.0


def told(metric: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(f"llmos_scheduler_{metric}", labels)


class Leader:
    """A monitor with a clock that the test moves, and one job that waits for the bus."""

    def __init__(self, db_url: str) -> None:
        self.bus = MemoryBus()
        self.clock = FakeClock()
        self.engine = open_database(db_url)
        self.liveness = Liveness(self.clock, timeout_s=SILENCE_S)
        truth = Truth(self.engine, take_over(self.engine))
        outbox, comparison = Outbox(truth, self.bus, MemoryDoorbell(), self.clock), Comparison(truth, self.clock)
        self.monitor = Monitor(truth, outbox, self.liveness, comparison, self.bus, "scheduler", self.clock)
        with truth.work() as work:
            work.put(a_job())
            work.mark(JOBS_STATE, "j1", NOW)

    def look_after(self, seconds: float) -> None:
        self.clock.passed_s += seconds
        self.monitor.look()


@pytest.fixture
def leader(new_database: NewDatabase) -> Iterator[Leader]:
    leader = Leader(new_database("scheduler"))
    yield leader
    forget()
    leader.bus.close()
    leader.engine.dispose()


def test_the_last_node_of_a_role_that_dies_is_no_longer_counted(leader: Leader) -> None:
    capacity = Capacity(cpus=1, memory_bytes=1)
    leader.liveness.all_shown()
    leader.liveness.heard(NodeHeartbeat(node="n1", role=Role.trainer, boot_id="b", seq=1, capacity=capacity, at=NOW))
    leader.monitor.look()
    assert (told("nodes", role="trainer"), told("nodes", role="inference")) == (1, 0)
    leader.look_after(SILENCE_S + 1)
    assert told("nodes", role="trainer") == 0


def test_how_long_the_outbox_waits_is_told_while_the_bus_is_away(leader: Leader) -> None:
    leader.monitor.look()
    assert told("outbox_age_seconds") == 0
    leader.bus.away = True
    with pytest.raises(BusUnavailable):
        leader.look_after(90)
    assert told("outbox_age_seconds") == 90


def test_a_database_that_is_away_does_not_hide_that_the_bus_is(leader: Leader, monkeypatch: pytest.MonkeyPatch) -> None:
    away = list[str]()
    monkeypatch.setattr(leader.liveness, "bus_is_away", lambda: away.append("bus"))
    monkeypatch.setattr(leader.monitor, "measure", lambda: 1 / 0)
    leader.bus.away = True
    with pytest.raises(BusUnavailable):
        leader.look_after(MEASURE_S)
    assert away == ["bus"]


class AtOnce(Stop):
    """Asked for as soon as the monitor has measured."""

    def __init__(self) -> None:
        self.asked = False

    def wait(self, timeout_s: float = 0) -> bool:
        self.asked = bool(told("jobs", status="queued")) and told("bus_lag", topic="jobs.commands") is not None
        return self.asked


def test_one_that_leads_no_longer_tells_nothing_of_what_it_measured(leader: Leader, tmp_path: Path) -> None:
    settings, leadership = Settings(home=tmp_path), FileLeadership(tmp_path / "leader")
    stop = AtOnce()
    assert leadership.acquire(stop)
    assert not lead(settings, leader.engine, leader.bus, MemoryDoorbell(), leadership, stop)
    leadership.release()
    assert (told("jobs", status="queued"), told("nodes", role="trainer")) == (None, None)
    assert (told("bus_lag", topic="jobs.commands"), told("dlq_depth", topic="jobs.commands")) == (None, None)
    assert (told("outbox_age_seconds"), told("oldest_unaccepted_attempt_seconds"), told("leads")) == (0, 0, 0)
