"""The client of `llmos.client` for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Concatenate, ParamSpec

import httpx

from llmos import calls
from llmos.calls import ENDED, Call, Json
from llmos.connection import AGAIN_S, RETRIES, TIMEOUT, Connection, missing_of, result_of
from llmos.errors import error_of
from llmos.files import sink
from llmos.patience import AsyncPatientTransport
from llmos.sse import EventParser

if TYPE_CHECKING:
    import openai

P = ParamSpec("P")


def _async(build: Callable[P, Call]) -> Callable[Concatenate[AsyncLLMOS, P], Awaitable[Json]]:
    async def method(self: AsyncLLMOS, /, *args: P.args, **kwargs: P.kwargs) -> Json:
        return await self.send(build(*args, **kwargs))

    method.__doc__ = build.__doc__
    return method


class AsyncLLMOS:
    """The same client for asyncio."""

    submit_job = _async(calls.submit_job)
    get_job = _async(calls.get_job)
    list_jobs = _async(calls.list_jobs)
    cancel_job = _async(calls.cancel_job)
    pause_job = _async(calls.pause_job)
    resume_job = _async(calls.resume_job)
    retry_job = _async(calls.retry_job)
    job_events = _async(calls.job_events)
    job_logs = _async(calls.job_logs)
    list_artifacts = _async(calls.list_artifacts)
    get_artifact = _async(calls.get_artifact)
    artifact_versions = _async(calls.artifact_versions)
    artifact_lineage = _async(calls.artifact_lineage)
    set_alias = _async(calls.set_alias)
    delete_alias = _async(calls.delete_alias)
    delete_artifact = _async(calls.delete_artifact)
    deploy = _async(calls.deploy)
    list_deployments = _async(calls.list_deployments)
    get_deployment = _async(calls.get_deployment)
    scale = _async(calls.scale)
    undeploy = _async(calls.undeploy)
    list_nodes = _async(calls.list_nodes)

    def __init__(self, url: str | None = None, key: str | None = None, home: Path | None = None) -> None:
        self.connection = Connection.find(url, key, home)
        self._http = httpx.AsyncClient(
            base_url=self.connection.url,
            headers=self.connection.headers,
            timeout=TIMEOUT,
            transport=AsyncPatientTransport(),
        )

    async def __aenter__(self) -> AsyncLLMOS:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    def openai(self) -> openai.AsyncOpenAI:
        """An async `openai` client of the same gateway."""
        import openai  # a second of start-up that most commands do not need

        return openai.AsyncOpenAI(
            base_url=f"{self.connection.url}/v1",
            api_key=self.connection.key,
            max_retries=RETRIES,
        )

    async def send(self, call: Call) -> Json:
        """One call. Raises LLMOSError."""
        try:
            answer = await self._http.request(
                call.method, call.path, params=dict(call.query), json=call.body, headers=dict(call.headers)
            )
        except httpx.TransportError as error:
            raise self.connection.broken(error) from error
        return result_of(answer)

    async def missing(self) -> dict[str, str]:
        """What the gateway lacks just now, by name, each with its reason; nothing when it is ready."""
        try:
            return missing_of(await self._http.get("/readyz"))
        except httpx.TransportError as error:
            raise self.connection.broken(error) from error

    def follow_job(self, job_id: str) -> AsyncIterator[Json]:
        """The job's events as they come, to the last; a broken connection goes on where it was."""
        return self._follow(job_id, calls.stream_events(job_id))

    def follow_logs(self, job_id: str) -> AsyncIterator[Json]:
        """The job's log lines as they come, to the last."""
        return self._follow(job_id, calls.stream_logs(job_id))

    async def wait_job(self, job_id: str) -> Json:
        """The job once it has ended, whichever way."""
        async for _ in self.follow_job(job_id):
            continue
        return await self.get_job(job_id)

    async def download(self, ref: str, to: Path | BinaryIO, on_bytes: Callable[[int], None] = lambda _: None) -> None:
        """A version as one .tar, into a file, whole or not at all, or into a stream."""
        call = calls.download(ref)
        with sink(to) as out:
            try:
                async with self._http.stream(call.method, call.path) as answer:
                    if answer.is_error:
                        await answer.aread()
                        raise error_of(answer)
                    async for chunk in answer.aiter_bytes():
                        await asyncio.to_thread(out.write, chunk)
                        on_bytes(len(chunk))
            except httpx.TransportError as error:
                raise self.connection.broken(error) from error

    async def _follow(self, job_id: str, call: Call) -> AsyncIterator[Json]:
        """As the other client's."""
        cursor, is_last = "", False
        while True:
            headers = {**call.headers, **({"Last-Event-ID": cursor} if cursor else {})}
            try:
                async with self._http.stream(call.method, call.path, headers=headers) as answer:
                    if answer.is_error:
                        await answer.aread()
                        raise error_of(answer)
                    parser = EventParser()
                    async for line in answer.aiter_lines():
                        if event := parser.feed(line):
                            cursor = event.id or cursor
                            yield event.data
                if is_last:
                    return
                is_last = (await self.get_job(job_id))["status"] in ENDED
            except httpx.ConnectError as error:
                raise self.connection.broken(error) from error
            except httpx.TransportError:
                pass  # the gateway went away in the middle: go on from the cursor, or fail at connecting
            if not is_last:
                await asyncio.sleep(AGAIN_S)
