"""python -m services.registry.migrate: bring the database up to date, before the registry starts."""

from shared.db.once import migrate_once

if __name__ == "__main__":
    migrate_once("registry")
