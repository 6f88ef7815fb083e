"""From a request to the first frames of its answer: one replica, and one other where the first does not take it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import msgspec
import structlog
from starlette.types import Receive

from services.gateway.inference import metrics
from services.gateway.inference.body import ClientLeft
from services.gateway.inference.call import Call
from services.gateway.inference.errors import (
    DeadlinePassed,
    InferenceError,
    Overloaded,
    QueueUnavailable,
    ReplicaFailed,
    ReplicaLost,
)
from services.gateway.inference.pending import Attempt, Pending, Reply
from services.gateway.inference.pump import Pump
from services.gateway.inference.replicas import Replica, choose
from services.gateway.inference.table import RoutingTable
from shared.contracts.inference import Cancel, Frame, FrameKind, Refusal, Request
from shared.requests.port import Requests, RequestsUnavailable
from shared.tracing import span

log = structlog.get_logger(__name__)
ATTEMPTS = (1, 2)
GRACE_MS = 1000
"""A replica's own deadline lies so much later: it is for a gateway that has died."""
JSON_HEADERS = [(b"content-type", b"application/json")]
_refusal = msgspec.msgpack.Decoder(Refusal)


class Dispatcher:
    """Owns every request from its sending to its end: second attempts, deadlines, and calling work back."""

    def __init__(self, table: RoutingTable, requests: Requests, pending: Pending, pump: Pump, silence_s: float) -> None:
        self._table = table
        self._requests = requests
        self._pending = pending
        self._pump = pump
        self._silence_s = silence_s
        self._calls_back: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def ask(self, call: Call, receive: Receive) -> AsyncIterator[tuple[Reply, list[Frame]]]:
        """The reply and its first frames. However the block ends, work that is not done is called back.

        Raises InferenceError, or ClientLeft when the client hangs up; so does the reply's `take`.
        """
        loop = asyncio.get_running_loop()
        reply = self._pending.open(uuid4().hex)
        deadline = loop.call_at(call.deadline, _too_late, reply, call)
        watcher = loop.create_task(_watch(receive, reply))
        work = span("answer", call.traceparent, request_id=reply.id, model=call.body.model)
        try:
            with work:
                yield reply, await self._first_frames(reply, call, work.traceparent)
        finally:
            deadline.cancel()
            watcher.cancel()
            self._call_back(reply)
            metrics.FRAMES.inc(reply.attempt.next_seq if reply.attempt else 0)
            self._pending.close(reply)

    async def stop(self) -> None:
        """Wait for the cancels that are on their way."""
        await asyncio.gather(*self._calls_back)

    async def _first_frames(self, reply: Reply, call: Call, traceparent: str | None) -> list[Frame]:
        problem: InferenceError | None = None
        tried: set[str] = set()
        for number in ATTEMPTS:
            replica, ref = self._pick(call, tried, problem)
            tried.add(replica.id)
            work = span(
                "until the first frame",
                traceparent,
                kind="client",
                request_id=reply.id,
                attempt=number,
                replica=replica.id,
                model=ref,
            )
            try:
                with work:
                    await self._send(reply, replica, number, call, ref, work.traceparent)
                    frames = await reply.take()
                    _raise_if_turned_down(frames[0], replica)
            except (ReplicaLost, Overloaded) as error:
                problem = error
                log.info("attempt failed", request=reply.id, replica=replica.id, attempt=number, reason=error.message)
                self._call_back(reply)
            else:
                return frames
        assert problem is not None
        raise problem

    def _pick(self, call: Call, tried: set[str], problem: InferenceError | None) -> tuple[Replica, str]:
        """A replica that was not tried. Raises why there is none: the first attempt's problem, if there was one."""
        try:
            route = self._table.resolve(call.tenant, call.body.model)
        except InferenceError as error:
            raise problem or error from None
        others = [replica for replica in route.replicas if replica.id not in tried]
        replica = choose(others, asyncio.get_running_loop().time(), self._silence_s, random.sample)
        if replica is None:
            assert problem is not None
            raise problem
        if problem is not None:
            metrics.RETRIES.labels(problem.code).inc()
        return replica, route.ref

    async def _send(
        self, reply: Reply, replica: Replica, number: int, call: Call, ref: str, traceparent: str | None
    ) -> None:
        address = self._pump.address
        if address is None or self._pump.away:
            raise QueueUnavailable("The queue that carries answers is away now; try again", retry_after_s=1)
        now = asyncio.get_running_loop().time()
        reply.begin(Attempt(replica, number, replica.status.boot_id, sent_at=now))
        request = Request(
            id=reply.id,
            attempt=number,
            path=call.path,
            body=call.body.with_model(ref),
            reply_to=address,
            headers=JSON_HEADERS,
            timeout_ms=max(0, int((call.deadline - now) * 1000)) + GRACE_MS,
            tenant=call.tenant,
            traceparent=traceparent,
        )
        try:
            await self._requests.send(replica.id, request)
        except RequestsUnavailable as error:
            raise QueueUnavailable("The queue that carries requests is away now; try again", retry_after_s=1) from error

    def _call_back(self, reply: Reply) -> None:
        """Tell the replica to stop, unless it has. In the background: nobody waits for it."""
        attempt = reply.attempt
        if attempt is None or attempt.over:
            return
        attempt.over = True
        metrics.CANCELS.inc()
        task = asyncio.get_running_loop().create_task(
            self._cancel(attempt.replica.id, Cancel(reply.id, attempt.number))
        )
        self._calls_back.add(task)
        task.add_done_callback(self._calls_back.discard)

    async def _cancel(self, replica_id: str, cancel: Cancel) -> None:
        try:
            await self._requests.send(replica_id, cancel)
        except RequestsUnavailable as error:
            log.warning("cancel not sent", request=cancel.id, replica=replica_id, reason=str(error))


async def _watch(receive: Receive, reply: Reply) -> None:
    """Notice that the client hung up."""
    while (await receive())["type"] != "http.disconnect":
        pass
    reply.fail(ClientLeft())


def _too_late(reply: Reply, call: Call) -> None:
    reply.fail(DeadlinePassed(f"The answer was not finished within {call.timeout_s:g} s"))


def _raise_if_turned_down(first: Frame, replica: Replica) -> None:
    if first.kind is FrameKind.refused:
        try:
            refusal = _refusal.decode(first.data)
        except msgspec.MsgspecError as error:
            raise ReplicaFailed(f"Replica {replica.id} refused in a form that is not known here: {error}") from error
        if refusal.broken:
            raise ReplicaLost(f"Replica {replica.id} broke down: {refusal.reason}", retry_after_s=refusal.retry_after_s)
        metrics.REFUSALS.inc()
        sentence = f"Replica {replica.id} takes no more requests now ({refusal.reason}; it holds {refusal.queue})"
        raise Overloaded(sentence, retry_after_s=refusal.retry_after_s)
    if first.kind is FrameKind.failed:
        raise failure_of(first)


def failure_of(frame: Frame) -> ReplicaFailed:
    """What a frame of kind `failed` says."""
    return ReplicaFailed(f"The replica could not finish this request: {frame.data.decode(errors='replace')}")
