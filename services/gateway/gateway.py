"""Everything a route needs, in one object that the composition root builds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from services.gateway.inference import InferenceGateway
from services.gateway.keys import Keys
from services.gateway.submissions import Submissions
from services.gateway.view import View
from shared.bus.port import Bus
from shared.settings import Settings
from shared.store.port import ObjectStore


@dataclass(frozen=True)
class Gateway:
    settings: Settings
    bus: Bus
    store: ObjectStore
    keys: Keys
    view: View
    submissions: Submissions
    inference: InferenceGateway


def _of(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


Here = Annotated[Gateway, Depends(_of)]
"""What a route writes to reach the gateway."""
