"""The wishes as the bus shows them: late copies and tombstones."""

from __future__ import annotations

from services.trainer.agent import Wishes
from shared.bus.port import Position, Record
from shared.contracts.jobs import DesiredAttempt, JobSpec, Wish
from shared.contracts.topics import ATTEMPTS_DESIRED


def record(version: int | None, attempt: int = 1) -> Record:
    wish = version and DesiredAttempt(
        job_id="j", attempt=attempt, version=version, spec=JobSpec(type="probe"), places=[], wish=Wish.run
    )
    return Record(ATTEMPTS_DESIRED, "j", Position(0, 0), wish or None)


def test_a_late_copy_changes_nothing() -> None:
    wishes = Wishes()
    assert wishes.take(record(2, attempt=2))
    assert not wishes.take(record(2, attempt=2))
    assert not wishes.take(record(1, attempt=1))
    assert wishes.now()["j"].attempt == 2


def test_a_tombstone_takes_the_wish_away() -> None:
    wishes = Wishes()
    wishes.take(record(1))
    assert wishes.take(record(None))
    assert wishes.now() == {}
    assert not wishes.take(record(None))
