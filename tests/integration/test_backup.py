"""A backup taken while the system works, and restored into an empty one: all jobs, all artifacts, all history."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from services.scheduler.backup import EPOCHS_AHEAD
from shared.backup.copying import Silent
from shared.backup.place import Place, place_at
from shared.backup.restoring import restore
from shared.backup.system import SERVICES, system_of
from shared.backup.taking import take
from shared.backup.verifying import verify_backup, verify_system
from shared.contracts.topics import JOBS_STATE
from shared.settings import Settings
from tests.ground import Ground, opened
from tests.integration.backup_world import Whole, running_system
from tests.integration.gateway_world import KEY
from tests.waiting import eventually

NewSystem = Callable[[str], tuple[Settings, Ground]]
"""Kind of ground → the settings of a system of its own, with nothing in it, and what it stands on."""


@pytest.fixture
def new_system(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NewSystem]:
    with ExitStack() as grounds:

        def new(kind: str) -> tuple[Settings, Ground]:
            home = tmp_path / uuid4().hex[:6]
            ground = grounds.enter_context(opened(kind, request, home))
            fields: dict[str, Any] = {"home": home, "api_key": KEY, "tick_s": 0.05, "backoff_s": 0.05}
            if kind == "cluster":
                fields |= {f"{service}_db_url": ground.new_database(service) for service in SERVICES}
                fields |= ground.store_settings
            return Settings(**fields), ground

        yield new


def place_beside(settings: Settings, folder: Path) -> Place:
    """In a bucket where the system is in one, else in a folder."""
    where = f"{settings.store_url}-saved" if settings.store_url else str(folder / "saved")
    return place_at(where, settings, must_exist=False)


def save(settings: Settings, place: Place) -> Any:
    system = system_of(settings, must_exist=True)
    try:
        return take(system, place, Silent())
    finally:
        system.close()


def bring_back(settings: Settings, place: Place, replace: bool = False) -> None:
    system = system_of(settings, must_exist=False)
    try:
        restore(system, place, place.backup(None), lambda: None, replace, Silent())
        assert verify_system(system, Silent()).broken == []
    finally:
        system.close()


class Working:
    """Somebody who goes on working: submits jobs and uploads files until told to stop."""

    def __init__(self, whole: Whole) -> None:
        self.jobs: list[str] = []
        self.files: list[str] = []
        self._whole = whole
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Working:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.is_set():
            self.jobs.append(self._whole.submit(output=f"made-{len(self.jobs)}"))
            self.files.append(
                self._whole.gateway.upload(b'{"prompt": "%s", "completion": "b"}\n' % uuid4().hex.encode())
            )


@pytest.mark.parametrize(
    ("kind", "to"),
    [("memory", "memory"), ("cluster", "cluster"), ("memory", "cluster"), ("cluster", "memory")],
)
@pytest.mark.timeout(300)
def test_all_that_was_accepted_before_a_backup_is_there_after_its_restore(
    kind: str, to: str, new_system: NewSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.scheduler.liveness.UNLISTED_S", 1.0)
    (before, here), (after, there) = new_system(kind), new_system(to)
    place = place_beside(before, tmp_path)
    with running_system(before, here.bus, tmp_path / "scratch1") as whole:
        done = [whole.submit(output="report") for _ in range(3)]
        for job_id in done:
            whole.until(job_id, "succeeded")
        held = whole.submit(output="held")
        whole.until(held, "running")
        events = {job_id: whole.events(job_id) for job_id in done}
        with Working(whole) as working:
            save(before, place)
            accepted = list(working.jobs), list(working.files)
            taken = save(before, place)
    assert taken.backup.broken == []
    assert verify_backup(place, place.backup(None), Silent()).broken == []

    bring_back(after, place)
    with running_system(after, there.bus, tmp_path / "scratch2") as whole:
        every_job = {*done, *accepted[0], held}
        eventually(lambda: every_job <= whole.shown(JOBS_STATE), 30, "the truth of every job on the new bus")
        for job_id in done + accepted[0]:
            whole.until(job_id, "succeeded")
        for job_id, told in events.items():
            assert [event["type"] for event in whole.events(job_id)] == [event["type"] for event in told]
        for file_id in accepted[1]:
            assert whole.gateway.openai.files.content(file_id).read()
        tried_again = "the attempt that ran when the backup was taken is lost, and tried again"
        eventually(lambda: len(whole.gateway.job(held)["attempts"]) == 2, 40, tried_again)
        assert whole.scheduler.truth.epoch > EPOCHS_AHEAD
    system = system_of(after, must_exist=True)
    verified = verify_system(system, Silent())
    system.close()
    assert verified.broken == []
    assert verified.artifacts >= len(done) + len(accepted[0]) + len(accepted[1])
