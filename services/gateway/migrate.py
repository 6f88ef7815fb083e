"""python -m services.gateway.migrate: bring the database up to date, before the gateway starts."""

from shared.db.once import migrate_once

if __name__ == "__main__":
    migrate_once("gateway")
