"""What all runs of a node share."""

from __future__ import annotations

from dataclasses import dataclass

from services.trainer.leftovers import RunFolder
from services.trainer.outbox import Contact
from shared.bus.port import Bus
from shared.contracts.nodes import Capacity
from shared.settings import Settings
from shared.store.cache import ArtifactCache
from shared.store.port import ObjectStore


@dataclass(frozen=True)
class Workplace:
    """Made once by the composition root."""

    settings: Settings
    bus: Bus
    store: ObjectStore
    cache: ArtifactCache
    folder: RunFolder
    capacity: Capacity
    contact: Contact
