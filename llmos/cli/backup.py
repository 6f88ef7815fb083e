"""`llmos admin backup`, `backups`, `restore`, `verify`: a whole system in a folder or a bucket, and back."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

import shared.bus
from llmos.cli.output import AsJson, ago, errors, say, say_error, show, size, table
from llmos.cli.session import Session, session_of
from llmos.embedded.running import running
from shared.bus.port import Bus, BusError, BusUnavailable, Record
from shared.contracts.bookmarks import BOOKMARK
from shared.contracts.topics import ATTEMPTS_DESIRED, DEPLOYMENTS_DESIRED, JOBS_STATE, REGISTRY_STATE, Topic
from shared.settings import Settings, SettingsError, load_settings

if TYPE_CHECKING:
    from shared.backup.verifying import Verified

BUS_S = 30.0

Where = Annotated[str, typer.Argument(metavar="PLACE", help="A folder, or s3://host:port/bucket.")]
Which = Annotated[
    str | None, typer.Option("--backup", help="Its id, as `llmos admin backups` lists them; default: the newest.")
]


def register(app: typer.Typer) -> None:
    for command in (backup, backups, restore, verify):
        app.command()(command)


def backup(context: typer.Context, place: Where, as_json: AsJson = False) -> None:
    """Save the whole system: databases and objects. It may run meanwhile. Objects that are there already are kept."""
    with _sentences(), _telling(as_json) as progress:
        from shared.backup.place import place_at
        from shared.backup.system import system_of
        from shared.backup.taking import take

        settings = _settings(context)
        with closing(system_of(settings, must_exist=True)) as system:
            to = place_at(place, settings, must_exist=False)
            taken = take(system, to, progress)
    head = taken.backup
    value = {
        **_shown(head),
        "place": to.name,
        "copied_objects": taken.copied_objects,
        "copied_bytes": taken.copied_bytes,
    }

    def person() -> None:
        say(
            f"saved {head.objects} objects ({size(head.size_bytes)}) and {sum(head.rows.values())} rows as {head.id} "
            f"in {to.name}; {taken.copied_objects} objects ({size(taken.copied_bytes)}) were new"
        )

    show(value, as_json, person)
    for ref in head.broken:
        say_error(f"{ref} is not whole in the system itself: `llmos admin verify` says why")
    raise typer.Exit(1 if head.broken else 0)


def backups(context: typer.Context, place: Where, as_json: AsJson = False) -> None:
    """The backups in a place, oldest first."""
    with _sentences():
        from shared.backup.place import place_at

        at = place_at(place, _settings(context), must_exist=True)
        found = [at.backup(backup_id) for backup_id in at.backups()]
    rows = [
        (it.id, ago(it.taken_at.isoformat()), it.objects, size(it.size_bytes), len(it.broken) or "") for it in found
    ]
    columns = ("BACKUP", "TAKEN", "OBJECTS", "SIZE", "BROKEN")
    show([_shown(it) for it in found], as_json, lambda: table(columns, rows, f"{at.name} holds no backup"))


def restore(
    context: typer.Context,
    place: Where,
    wanted: Which = None,
    replace: Annotated[bool, typer.Option("--replace", help="In the place of all that the system holds now.")] = False,
    check: Annotated[bool, typer.Option(help="Read every artifact at the end.")] = True,
    as_json: AsJson = False,
) -> None:
    """Make a system what it was, with its services stopped. It must be empty, and its bus too."""
    with _sentences(), _telling(as_json) as progress:
        from shared.backup.place import place_at
        from shared.backup.restoring import restore as bring_back
        from shared.backup.system import system_of
        from shared.backup.verifying import Verified, verify_system

        session, settings = session_of(context), _settings(context)
        _refuse_while_up(session)
        at = place_at(place, settings, must_exist=True)
        head = at.backup(wanted)
        _refuse_used_bus(settings)
        with closing(system_of(settings, must_exist=False)) as system:
            done = bring_back(system, at, head, lambda: _clear_embedded_bus(session, settings), replace, progress)
            verified = verify_system(system, progress) if check else Verified()
    value = {
        **_shown(head),
        "place": at.name,
        "copied_objects": done.copied_objects,
        "verified": asdict(verified) if check else None,
    }

    def person() -> None:
        say(f"restored {head.id}: {sum(done.rows.values())} rows, {head.objects} objects ({size(head.size_bytes)})")
        if check:
            _say_verified(verified)
        say("start the services now: they fill the bus, and try again what ran when the backup was taken")

    show(value, as_json, person)
    raise typer.Exit(_complain(verified))


def verify(
    context: typer.Context,
    place: Annotated[str | None, typer.Argument(metavar="[PLACE]", help="A backup's folder or bucket.")] = None,
    wanted: Which = None,
    as_json: AsJson = False,
) -> None:
    """Read every file of every artifact of this system, or of a backup, and say what is not whole."""
    with _sentences(), _telling(as_json) as progress:
        from shared.backup.place import place_at
        from shared.backup.system import system_of
        from shared.backup.verifying import verify_backup, verify_system

        settings = _settings(context)
        if place is None:
            with closing(system_of(settings, must_exist=True)) as system:
                verified = verify_system(system, progress)
        else:
            at = place_at(place, settings, must_exist=True)
            verified = verify_backup(at, at.backup(wanted), progress)
    show(asdict(verified), as_json, lambda: _say_verified(verified))
    raise typer.Exit(_complain(verified))


def _settings(context: typer.Context) -> Settings:
    return load_settings(home=session_of(context).home)


def _refuse_while_up(session: Session) -> None:
    from shared.backup.errors import Occupied

    if here := running(session.layout):
        raise Occupied(f"LLM OS is up on {session.home} (pid {here.pid}): stop it with `llmos down` first")


def _refuse_used_bus(settings: Settings) -> None:
    """What an old bus shows would stand against the restored truth. The embedded system's is emptied later."""
    from shared.backup.errors import Occupied

    if settings.bus_url.startswith("memory:"):
        return
    bus = shared.bus.connect(settings.bus_url, "llmos-restore")
    try:
        for topic in (JOBS_STATE, ATTEMPTS_DESIRED, REGISTRY_STATE, DEPLOYMENTS_DESIRED):
            if keys := _keys_of(bus, topic):
                raise Occupied(
                    f"the bus is not empty: {topic.name} shows {len(keys)} keys. A restored system begins with an "
                    "empty one: delete the bus's data, or its topics, and run `llmos admin init`"
                )
    finally:
        bus.close()


def _keys_of(bus: Bus, topic: Topic) -> set[str]:
    """What a compacted topic holds, besides its owner's bookmark. Raises BusUnavailable."""
    keys, shown = set[str](), threading.Event()

    def saw(record: Record) -> None:
        if record.message is not None and record.key != BOOKMARK:
            keys.add(record.key)

    following = bus.follow(topic, saw, shown.set)
    in_time = shown.wait(BUS_S)
    following.close()
    if not in_time and not keys:
        raise BusUnavailable(f"the bus did not show {topic.name} within {BUS_S:g} s: are its topics there?")
    return keys


def _clear_embedded_bus(session: Session, settings: Settings) -> None:
    """What lies there is from before the restore; whatever it still had to say is in the databases too."""
    if settings.bus_url.startswith("memory:") and session.layout.durable_data.is_dir():
        shutil.rmtree(session.layout.durable_data)


def _shown(head: Any) -> dict[str, Any]:
    shown: dict[str, Any] = head.model_dump(
        mode="json", include={"id", "taken_at", "version", "rows", "objects", "size_bytes", "broken"}
    )
    return shown


def _say_verified(verified: Verified) -> None:
    whole = verified.artifacts - len({broken.what for broken in verified.broken})
    say(
        f"{whole} of {verified.artifacts} artifacts are whole: {verified.files} files, {size(verified.size_bytes)} read"
    )


def _complain(verified: Verified) -> int:
    for broken in verified.broken:
        say_error(f"{broken.what}: {broken.problem}")
    return 1 if verified.broken else 0


@contextmanager
def _sentences() -> Iterator[None]:
    """Errors as one sentence and an exit code."""
    try:
        from sqlalchemy.exc import SQLAlchemyError

        from shared.backup import errors as told
        from shared.store.port import StoreError, StoreUnavailable
    except ModuleNotFoundError as error:
        say_error(f"backups need {error.name}: install llm-os[gateway,scheduler,registry]")
        raise typer.Exit(2) from None
    codes: dict[type[Exception], int] = {
        told.NoSuchBackup: 3,
        told.Away: 4,
        StoreUnavailable: 4,
        BusError: 4,
        told.Occupied: 5,
        told.Unusable: 2,
        told.BackupError: 1,
        StoreError: 1,
        SQLAlchemyError: 1,
    }
    try:
        yield
    except tuple(codes) as error:
        say_error(str(error).partition("\n")[0])
        raise typer.Exit(next(code for kind, code in codes.items() if isinstance(error, kind))) from None
    except SettingsError as error:
        say_error(str(error))
        raise typer.Exit(2) from None


class Bar:
    """Steps and bytes, for a person."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("begins", total=None)

    def step(self, sentence: str, total_bytes: int = 0) -> None:
        self._bar.reset(self._task, description=sentence, total=total_bytes or None)

    def moved(self, count: int) -> None:
        self._bar.advance(self._task, count)


@contextmanager
def _telling(as_json: bool) -> Iterator[Bar]:
    """On stderr, and only on a terminal."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=errors, transient=True, disable=as_json or not errors.is_terminal) as bar:
        yield Bar(bar)
