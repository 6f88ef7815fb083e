"""The client library: what it finds, sends and makes of answers."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from llmos import calls, connection
from llmos.connection import Connection, result_of
from llmos.embedded.running import Running
from llmos.errors import APIError, Conflict, NoAddress, NoKey, NotConnected, NotFound
from llmos.sse import EventParser, ServerEvent


def test_the_key_is_found_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLMOS_API_KEY", raising=False)
    (tmp_path / "key").write_text("sk-llmos-1\n")
    assert Connection.find("http://here/", home=tmp_path) == Connection("http://here", "sk-llmos-1")


def test_a_missing_key_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLMOS_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NoKey, match="llmos up"):
        Connection.find("http://here", home=tmp_path)


def test_the_key_for_a_given_address_may_lie_in_the_env_file_of_compose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LLMOS_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("LLMOS_DEV=1\nLLMOS_API_KEY=sk-llmos-compose\n")
    (tmp_path / "key").write_text("sk-llmos-of-this-machine\n")
    assert Connection.find("http://there", home=tmp_path).key == "sk-llmos-compose"
    monkeypatch.setattr(connection, "running", lambda _: Running(1, "http://here"))
    assert Connection.find(home=tmp_path) == Connection("http://here", "sk-llmos-of-this-machine")


def test_where_nothing_runs_no_other_system_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMOS_API_KEY", "sk-llmos-of-another")
    with pytest.raises(NotConnected, match=f"nothing runs on {tmp_path}.*llmos up.*--url"):
        Connection.find(home=tmp_path)


@pytest.mark.parametrize("url", ["nonsense", "ftp://host", "http://", "http://[::1"])
def test_what_is_no_address_is_said_before_a_key_is_looked_for(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LLMOS_API_KEY", raising=False)
    with pytest.raises(NoAddress, match="is no address of a gateway"):
        Connection.find(url, home=tmp_path)


def test_calls_send_only_what_was_given() -> None:
    assert calls.submit_job("probe").body == {"type": "probe"}
    assert calls.submit_job("probe", priority=0, params={"steps": 1}).body == {
        "type": "probe",
        "priority": 0,
        "params": {"steps": 1},
    }


def test_every_write_carries_a_key_of_its_own() -> None:
    first, second = calls.cancel_job("a"), calls.cancel_job("a")
    assert first.headers["Idempotency-Key"] != second.headers["Idempotency-Key"]


def test_names_are_quoted_in_paths() -> None:
    assert calls.get_artifact("a b@3").path == "/v1/artifacts/a%20b@3"


@pytest.mark.parametrize(("status", "kind"), [(404, NotFound), (409, Conflict), (422, APIError)])
def test_an_error_answer_becomes_its_error(status: int, kind: type[APIError]) -> None:
    body = {"error": {"message": "no", "type": "t", "param": "p", "code": "c"}}
    with pytest.raises(kind) as raised:
        result_of(httpx.Response(status, json=body))
    assert (raised.value.status, raised.value.code, raised.value.param) == (status, "c", "p")


def test_an_answer_that_is_no_envelope_is_still_a_sentence() -> None:
    with pytest.raises(APIError, match="502"):
        result_of(httpx.Response(502, text="<html>"))


def test_server_events_are_put_together_from_lines() -> None:
    parser = EventParser()
    lines = [": comment", "id: 7", 'data: {"a":', "data: 1}", "", "data: [DONE]", ""]
    assert [event for line in lines if (event := parser.feed(line))] == [ServerEvent("7", {"a": 1})]
