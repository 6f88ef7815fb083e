"""Bringing a schema up to date, and no more: `python -m services.<name>.migrate`, before the services start."""

from __future__ import annotations

import argparse
import logging
import sys
import time

from sqlalchemy import Engine

from shared.db import AWAY, migrate, open_database, why
from shared.settings import SettingsError, die, load_settings

log = logging.getLogger("llmos.migrate")

PAUSE_S = 0.5


def migrate_once(service: str) -> None:
    """Wait for the database, migrate, end. Exit code 2 and one sentence where the server refuses or does not come."""
    parser = argparse.ArgumentParser(description=f"Bring the database of the {service} up to date (LLMOS_DB_URL).")
    parser.add_argument("--wait-s", type=float, default=60.0, help="how long to wait for the database (default: 60)")
    wait_s = parser.parse_args().wait_s
    logging.basicConfig(format="llmos: %(message)s", level=logging.INFO, stream=sys.stderr)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        engine = open_database(load_settings().effective_db_url(service))
        migrate_within(engine, f"services.{service}.migrations", wait_s)
    except SettingsError as error:
        die(error)
    log.info("the database of the %s is up to date", service)


def migrate_within(engine: Engine, package: str, wait_s: float) -> None:
    """Migrate as soon as the database answers. Raises SettingsError when it does not in time."""
    deadline = time.monotonic() + wait_s
    said = ""
    while True:
        try:
            return migrate(engine, package)
        except AWAY as error:
            reason = why(error)
            if time.monotonic() > deadline:
                raise SettingsError(f"LLMOS_DB_URL: the database did not answer in {wait_s:g} s: {reason}") from None
            if reason != said:
                log.info("waits for the database: %s", reason)
            said = reason
        time.sleep(PAUSE_S)
