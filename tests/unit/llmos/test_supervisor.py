"""`llmos up`: what is there already, what cannot be, and what a killed one left. With tiny programs for services."""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from llmos.embedded import supervisor as module
from llmos.embedded.address import check_port, not_ready, url_of
from llmos.embedded.errors import UpError
from llmos.embedded.layout import Layout
from llmos.embedded.processes import Child, Program
from llmos.embedded.running import running
from llmos.embedded.supervisor import Supervisor
from shared.processes import birth_of
from shared.settings import SettingsError
from tests.ports import free_port
from tests.waiting import eventually

GATEWAY = """
import os
from http.server import BaseHTTPRequestHandler, HTTPServer

class Ready(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_): pass

HTTPServer(("127.0.0.1", int(os.environ["LLMOS_PORT"])), Ready).serve_forever()
"""
IDLE = "import signal; signal.pause()"
BROKEN = "print('llmos: LLMOS_NODE: it is taken'); raise SystemExit(2)"


@pytest.fixture
def layout() -> Iterator[Layout]:
    with tempfile.TemporaryDirectory(prefix="llmos-", dir="/tmp") as folder:  # short: sockets have short paths
        yield Layout(Path(folder))


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Service → its code instead of the real one; the queues are real."""
    codes = {**dict.fromkeys(module.SERVICES, IDLE), "gateway": GATEWAY}

    def service(name: str, environment: Mapping[str, str]) -> Program:
        return Program(name, [sys.executable, "-c", codes[name]], environment)

    monkeypatch.setattr(module, "service", service)
    return codes


@pytest.fixture
def up(layout: Layout, programs: dict[str, str]) -> Iterator[Supervisor]:
    supervisor = Supervisor(layout, "127.0.0.1", free_port())
    supervisor.start()
    yield supervisor
    supervisor.stop()


def pids(supervisor: Supervisor) -> list[int]:
    return [child.pid for child in supervisor.children.values() if child.pid]


def test_up_runs_everything_and_its_stop_leaves_nothing(up: Supervisor, layout: Layout) -> None:
    here = running(layout)
    assert here is not None
    assert (here.pid, here.url) == (os.getpid(), up.url)
    everyone = pids(up)
    assert len(everyone) == len(module.SERVICES) + 2
    assert all(map(birth_of, everyone))
    up.stop()
    assert not any(map(birth_of, everyone))
    assert running(layout) is None


def test_a_second_up_is_refused_and_harms_nothing(up: Supervisor, layout: Layout) -> None:
    second = Supervisor(layout, "127.0.0.1", free_port())
    with pytest.raises(UpError, match=rf"already up .*pid {os.getpid()}.*llmos down"):
        second.start()
    second.stop()
    assert layout.processes_file.exists()
    assert all(map(birth_of, pids(up)))
    assert running(layout) is not None


def test_a_busy_port_is_said_before_anything_is_started(layout: Layout, programs: dict[str, str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        supervisor = Supervisor(layout, "127.0.0.1", port)
        with pytest.raises(UpError, match=rf"cannot listen on 127.0.0.1:{port}.*--port"):
            supervisor.start()
    assert supervisor.children == {}
    supervisor.stop()
    assert running(layout) is None


def test_a_service_that_cannot_start_says_why_and_nothing_stays(layout: Layout, programs: dict[str, str]) -> None:
    programs["scheduler"] = BROKEN
    supervisor = Supervisor(layout, "127.0.0.1", free_port())
    try:
        programs["gateway"] = IDLE
        with pytest.raises(UpError, match=r"scheduler does not start(.|\n)*LLMOS_NODE: it is taken"):
            supervisor.start()
    finally:
        everyone = pids(supervisor)
        supervisor.stop()
    assert not any(map(birth_of, everyone))


def test_a_start_has_only_the_time_it_is_given(layout: Layout, programs: dict[str, str]) -> None:
    programs["gateway"] = IDLE
    supervisor = Supervisor(layout, "127.0.0.1", free_port())
    try:
        with pytest.raises(UpError, match=r"after 0 s: .* or give it more time with --timeout"):
            supervisor.start(timeout_s=0)
    finally:
        everyone = pids(supervisor)
        supervisor.stop()
    assert everyone
    assert not any(map(birth_of, everyone))


def test_the_next_up_ends_what_a_killed_one_left(layout: Layout, programs: dict[str, str]) -> None:
    layout.create()
    left = Child(Program("trainer", [sys.executable, "-c", IDLE]), layout.logs / "trainer.log")
    left.start()
    module.record(layout.processes_file, [left])
    said: list[str] = []
    supervisor = Supervisor(layout, "127.0.0.1", free_port())
    try:
        supervisor.start(said.append)
        assert not left.running
        assert any("ended trainer" in sentence for sentence in said)
    finally:
        supervisor.stop()
        left.stop(0)


def test_a_full_disk_while_tending_stops_nothing(up: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "record", full)
    registry = up.children["registry"]
    assert registry.pid is not None
    os.kill(registry.pid, 9)
    said: list[str] = []

    def told() -> bool:
        up.tend(said.append)
        return any("No space left" in sentence for sentence in said)

    eventually(told)
    assert registry.running


def test_a_home_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UpError, match=r"cannot start on .*file.*--home"):
        Supervisor(Layout(tmp_path / "file" / "home"), "127.0.0.1", free_port()).start()


def test_an_unknown_setting_stops_the_start(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMOS_COLOUR", "blue")
    supervisor = Supervisor(layout, "127.0.0.1", free_port())
    with pytest.raises(SettingsError, match="LLMOS_COLOUR"):
        supervisor.start()
    assert supervisor.children == {}


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "http://127.0.0.1:1"), ("0.0.0.0", "http://127.0.0.1:1"), ("::", "http://[::1]:1")],
)
def test_the_address_is_one_that_can_be_called(host: str, url: str) -> None:
    assert url_of(host, 1) == url


def test_what_is_no_address_is_said() -> None:
    with pytest.raises(UpError, match=r"'no such host' is no address.*--host"):
        check_port("no such host", 1)


def test_nothing_there_is_not_ready() -> None:
    assert not_ready(f"http://127.0.0.1:{free_port()}") == ""


@pytest.mark.parametrize("text", ["", "{", '{"pid": 1}'])
def test_who_has_just_taken_the_lock_is_not_known_yet(layout: Layout, text: str) -> None:
    layout.lock_file.write_text(text)
    with layout.lock_file.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert running(layout) is None
