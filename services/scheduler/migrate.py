"""python -m services.scheduler.migrate: bring the database up to date, before the scheduler starts."""

from shared.db.once import migrate_once

if __name__ == "__main__":
    migrate_once("scheduler")
