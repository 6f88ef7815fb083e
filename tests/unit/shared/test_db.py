"""A start finds the schema as it left it, and brings it up to date when it must."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import inspect

from shared.db import migrate, newest_version, open_database
from shared.settings import SettingsError

PACKAGES = [f"services.{service}.migrations" for service in ("gateway", "registry", "scheduler")]


@pytest.mark.parametrize("package", PACKAGES)
def test_migrations_are_named_after_their_revisions(package: str) -> None:
    folder = Path(importlib.import_module(package).__path__[0])
    config = Config()
    config.set_main_option("script_location", str(folder))
    scripts = ScriptDirectory.from_config(config)
    assert newest_version(folder) == scripts.get_current_head()
    for script in scripts.walk_revisions():
        assert Path(script.path).stem.partition("_")[0] == script.revision


@pytest.mark.parametrize("package", PACKAGES)
def test_a_database_is_migrated_once_and_its_next_start_loads_no_alembic(package: str, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/new.sqlite"
    migrate(open_database(url), package)
    assert len(inspect(open_database(url)).get_table_names()) > 1
    again = "import sys; from shared.db import migrate, open_database; "
    again += f"migrate(open_database({url!r}), {package!r}); assert 'alembic' not in sys.modules"
    subprocess.run([sys.executable, "-c", again], check=True, timeout=60)


@pytest.mark.parametrize(
    "url", ["nonsense", "postgresql+nodriver://me:secret@localhost/x", "mysql+aiomysql://me:secret@localhost/x"]
)
def test_a_url_that_names_no_usable_database_is_refused_in_a_sentence_without_its_password(url: str) -> None:
    with pytest.raises(SettingsError, match="LLMOS_DB_URL") as refused:
        open_database(url)
    assert "secret" not in str(refused.value)
