"""The trainer service in a process of its own, to be killed: `python -m tests.integration.trainer_service`.

Its bus is in memory; its one wish is a job that lasts. What it says goes to stdout as wire messages, one a line.
"""

from __future__ import annotations

import sys
from concurrent.futures import Future

from services.trainer.main import serve
from shared.bus.memory import MemoryBus
from shared.bus.port import Position
from shared.contracts.jobs import DesiredAttempt, JobSpec, Place, Wish
from shared.contracts.message import Message
from shared.contracts.topics import ATTEMPTS_DESIRED, Topic
from shared.settings import load_settings
from shared.store import connect
from shared.telemetry import setup_telemetry


class LoudBus(MemoryBus):
    """Prints whatever is published."""

    def publish(self, topic: Topic, key: str, message: Message | None) -> Future[Position]:
        if message and topic is not ATTEMPTS_DESIRED:
            sys.stdout.buffer.write(message.encode() + b"\n")
            sys.stdout.buffer.flush()
        return super().publish(topic, key, message)


def main() -> None:
    settings = load_settings()
    setup_telemetry(settings, "trainer")  # logs go to stderr
    bus = LoudBus()
    spec = JobSpec(type="probe", params={"steps": 10_000, "step_s": 0.05, "ignore_sigterm": "--stubborn" in sys.argv})
    place = Place(node=settings.node)
    wish = DesiredAttempt(job_id="j", attempt=1, version=1, spec=spec, places=[place], wish=Wish.run)
    bus.publish(ATTEMPTS_DESIRED, "j", wish)
    serve(settings, bus, connect(settings))


if __name__ == "__main__":
    main()
