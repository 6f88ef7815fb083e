"""The Python client for what the `openai` package does not cover, and the way to an `openai` client."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Concatenate, ParamSpec

import httpx

from llmos import calls
from llmos.calls import ENDED, Call, Json
from llmos.connection import AGAIN_S, RETRIES, TIMEOUT, Connection, missing_of, result_of
from llmos.errors import error_of
from llmos.files import sink
from llmos.patience import PatientTransport
from llmos.sse import server_events

if TYPE_CHECKING:
    import openai

P = ParamSpec("P")


def _sync(build: Callable[P, Call]) -> Callable[Concatenate[LLMOS, P], Json]:
    def method(self: LLMOS, /, *args: P.args, **kwargs: P.kwargs) -> Json:
        return self.send(build(*args, **kwargs))

    method.__doc__ = build.__doc__
    return method


class LLMOS:
    """The client. `LLMOS()` finds the running system on this machine by itself."""

    submit_job = _sync(calls.submit_job)
    get_job = _sync(calls.get_job)
    list_jobs = _sync(calls.list_jobs)
    cancel_job = _sync(calls.cancel_job)
    pause_job = _sync(calls.pause_job)
    resume_job = _sync(calls.resume_job)
    retry_job = _sync(calls.retry_job)
    job_events = _sync(calls.job_events)
    job_logs = _sync(calls.job_logs)
    list_artifacts = _sync(calls.list_artifacts)
    get_artifact = _sync(calls.get_artifact)
    artifact_versions = _sync(calls.artifact_versions)
    artifact_lineage = _sync(calls.artifact_lineage)
    set_alias = _sync(calls.set_alias)
    delete_alias = _sync(calls.delete_alias)
    delete_artifact = _sync(calls.delete_artifact)
    deploy = _sync(calls.deploy)
    list_deployments = _sync(calls.list_deployments)
    get_deployment = _sync(calls.get_deployment)
    scale = _sync(calls.scale)
    undeploy = _sync(calls.undeploy)
    list_nodes = _sync(calls.list_nodes)

    def __init__(self, url: str | None = None, key: str | None = None, home: Path | None = None) -> None:
        self.connection = Connection.find(url, key, home)
        self._http = httpx.Client(
            base_url=self.connection.url,
            headers=self.connection.headers,
            timeout=TIMEOUT,
            transport=PatientTransport(),
        )

    def __enter__(self) -> LLMOS:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def openai(self) -> openai.OpenAI:
        """An `openai` client of the same gateway: files, fine-tuning, models, chat.

        Raises NotConnected where nothing answers: that client itself would try for a quarter of a minute first.
        """
        self.ping()
        import openai  # a second of start-up that most commands do not need

        return openai.OpenAI(
            base_url=f"{self.connection.url}/v1",
            api_key=self.connection.key,
            max_retries=RETRIES,
        )

    def ping(self) -> None:
        """Whether anything answers there. Raises NotConnected."""
        try:
            self._http.get("/healthz")
        except httpx.TransportError as error:
            raise self.connection.broken(error) from error

    def send(self, call: Call) -> Json:
        """One call. Raises LLMOSError."""
        try:
            answer = self._http.request(
                call.method, call.path, params=dict(call.query), json=call.body, headers=dict(call.headers)
            )
        except httpx.TransportError as error:
            raise self.connection.broken(error) from error
        return result_of(answer)

    def missing(self) -> dict[str, str]:
        """What the gateway lacks just now, by name, each with its reason; nothing when it is ready."""
        try:
            return missing_of(self._http.get("/readyz"))
        except httpx.TransportError as error:
            raise self.connection.broken(error) from error

    def follow_job(self, job_id: str) -> Iterator[Json]:
        """The job's events as they come, to the last; a broken connection goes on where it was."""
        return self._follow(job_id, calls.stream_events(job_id))

    def follow_logs(self, job_id: str) -> Iterator[Json]:
        """The job's log lines as they come, to the last."""
        return self._follow(job_id, calls.stream_logs(job_id))

    def wait_job(self, job_id: str) -> Json:
        """The job once it has ended, whichever way."""
        for _ in self.follow_job(job_id):
            continue
        return self.get_job(job_id)

    def download(self, ref: str, to: Path | BinaryIO, on_bytes: Callable[[int], None] = lambda _: None) -> None:
        """A version as one .tar, into a file, whole or not at all, or into a stream."""
        call = calls.download(ref)
        with sink(to) as out:
            try:
                with self._http.stream(call.method, call.path) as answer:
                    if answer.is_error:
                        answer.read()
                        raise error_of(answer)
                    for chunk in answer.iter_bytes():
                        out.write(chunk)
                        on_bytes(len(chunk))
            except httpx.TransportError as error:
                raise self.connection.broken(error) from error

    def _follow(self, job_id: str, call: Call) -> Iterator[Json]:
        """A stream's end says nothing: a gateway that stops ends its streams too. The one that was opened after the
        job had ended is the last."""
        cursor, is_last = "", False
        while True:
            headers = {**call.headers, **({"Last-Event-ID": cursor} if cursor else {})}
            try:
                with self._http.stream(call.method, call.path, headers=headers) as answer:
                    if answer.is_error:
                        answer.read()
                        raise error_of(answer)
                    for event in server_events(answer.iter_lines()):
                        cursor = event.id or cursor
                        yield event.data
                if is_last:
                    return
                is_last = self.get_job(job_id)["status"] in ENDED
            except httpx.ConnectError as error:
                raise self.connection.broken(error) from error
            except httpx.TransportError:
                pass  # the gateway went away in the middle: go on from the cursor, or fail at connecting
            if not is_last:
                time.sleep(AGAIN_S)
