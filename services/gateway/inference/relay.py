"""One request from its body to the last piece of its answer, as a response that FastAPI can send."""

from __future__ import annotations

import asyncio

import structlog
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from services.gateway.errors import ApiError
from services.gateway.inference import metrics
from services.gateway.inference.answers import AnswerBrokeOff, pass_on
from services.gateway.inference.body import Body, ClientLeft, read_body
from services.gateway.inference.call import make_call
from services.gateway.inference.dispatch import Dispatcher
from services.gateway.inference.errors import ClientTooSlow
from services.gateway.inference.pending import Reply
from shared.contracts.inference import Frame

log = structlog.get_logger(__name__)


class Relay(Response):
    """A response that asks a replica and passes its answer on. What came of it is counted by path and status."""

    def __init__(self, dispatcher: Dispatcher, path: str, tenant: str, default_timeout_s: float) -> None:
        super().__init__()
        self._dispatcher = dispatcher
        self._path = path
        self._tenant = tenant
        self._default_timeout_s = default_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status: int | str = "client_left"
        try:
            with metrics.IN_FLIGHT.track_inprogress():
                status = await self._answer(scope, receive, send)
        except ClientLeft:
            pass
        except AnswerBrokeOff as broken:
            status = broken.error.status
        except ApiError as error:
            status = error.status
            raise
        finally:
            metrics.REQUESTS.labels(self._path, status).inc()

    def read(self, raw: bytes) -> tuple[str, Body]:
        """The engine's path and body for what the client sent."""
        return self._path, Body(raw)

    async def pass_on(self, reply: Reply, first: list[Frame], send: Send) -> int:
        """Send the answer to the client; its status."""
        return await pass_on(reply, first, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> int:
        path, body = self.read(await read_body(receive))
        call = make_call(scope, path, self._tenant, body, self._default_timeout_s)
        asked_at = asyncio.get_running_loop().time()
        async with self._dispatcher.ask(call, receive) as (reply, first):
            metrics.FIRST_FRAME.observe(asyncio.get_running_loop().time() - asked_at)
            try:
                async with asyncio.timeout(None) as reply.patience:
                    return await self.pass_on(reply, first, send)
            except TimeoutError:
                log.info("client does not read: its connection is closed", request=reply.id)
                return ClientTooSlow.status
