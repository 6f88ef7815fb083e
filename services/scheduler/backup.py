"""What only the scheduler knows about a restore of its tables. `shared.backup` calls it."""

from __future__ import annotations

import time

from sqlalchemy import Connection, select, update

from services.scheduler.tables import early_cancels, handled, jobs, leader
from shared.backup.system import Restored
from shared.contracts.jobs import TERMINAL

EPOCHS_AHEAD = 1_000_000
"""More takeovers than there can have been since the backup was taken: whoever led by then writes nothing here."""


def settle(sql: Connection, restored: Restored) -> None:
    """The next leader's epoch is higher than any before. Ids of commands are kept anew for as long as they may come
    again: senders repeat what was on the bus."""
    sql.execute(update(leader).values(epoch=leader.c.epoch + EPOCHS_AHEAD))
    sql.execute(update(handled).values(at=time.time()))
    sql.execute(update(early_cancels).values(at=time.time()))
    restored.handled.update(sql.scalars(select(handled.c.id)))
    for job_id, status in sql.execute(select(jobs.c.id, jobs.c.status)):
        restored.jobs.add(job_id)
        if status not in TERMINAL:
            restored.unfinished.add(job_id)
