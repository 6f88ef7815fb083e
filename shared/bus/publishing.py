"""Several messages on their way at once, for those who write down what is to be said until it is."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import wait

from shared.bus.port import Bus
from shared.contracts.message import Message
from shared.contracts.topics import Topic

ACK_TIMEOUT_S = 30.0


def publish_all(bus: Bus, messages: Sequence[tuple[Topic, str, Message | None]]) -> list[BaseException | None]:
    """Publish all and wait. For each, in their order: None once it is durable, else why it is not known to be."""
    flying = [bus.publish(topic, key, message) for topic, key, message in messages]
    wait(flying, timeout=ACK_TIMEOUT_S)
    late = TimeoutError(f"the bus did not answer within {ACK_TIMEOUT_S:.0f} s")
    return [future.exception() if future.done() else late for future in flying]
