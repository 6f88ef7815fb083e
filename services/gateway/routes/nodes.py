"""Nodes: the machines, what they offer and what runs on them."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from fastapi import APIRouter

from services.gateway import answers
from services.gateway.answers.deployments import node
from services.gateway.auth import Caller
from services.gateway.errors import NotFound
from services.gateway.gateway import Gateway, Here
from services.gateway.reading import StrictRoute

router = APIRouter(prefix="/v1/nodes", tags=["nodes"], route_class=StrictRoute)


@router.get("")
def list_nodes(here: Here, caller: Caller) -> dict[str, Any]:
    return answers.listed(_nodes(here), False)


@router.get("/{name}")
def get(name: str, here: Here, caller: Caller) -> dict[str, Any]:
    found = next((one for one in _nodes(here) if one["id"] == name), None)
    if found is None:
        raise NotFound(f"No node {name!r} has been heard of lately.", param="name", code="node_not_found")
    return found


def _nodes(here: Gateway) -> list[dict[str, Any]]:
    heard = here.view.fleet.nodes()
    by_name = groupby(sorted(heard, key=lambda one: one.heartbeat.node), key=lambda one: one.heartbeat.node)
    return [node(name, list(roles), here.settings.heartbeat_timeout_s) for name, roles in by_name]
