"""What a run says on the bus: every message with its fence, lines and progress gathered, all in one order."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from services.trainer import protocol
from services.trainer.endings import Ended, StopOrder
from services.trainer.log_feed import LogFeed
from services.trainer.outbox import Outbox
from services.trainer.progress import ProgressFeed, percent
from shared.contracts.jobs import (
    AttemptFailed,
    AttemptStarted,
    AttemptStopped,
    AttemptSucceeded,
    CheckpointRef,
    CheckpointSaved,
    DesiredAttempt,
    LogLines,
    Output,
    Place,
    Progress,
    RunMessage,
    Wish,
)
from shared.contracts.nodes import RunRef


class Telling:
    """Its methods may be called from any thread of the run."""

    def __init__(
        self, desired: DesiredAttempt, place: Place, ref: RunRef, traceparent: str | None, outbox: Outbox
    ) -> None:
        self._node = place.node
        self._who = f"Rank {ref.rank} on {place.node}: " if len(desired.places) > 1 else ""
        self._fence: dict[str, Any] = {**ref.model_dump(), "tenant": desired.tenant, "traceparent": traceparent}
        self._outbox = outbox
        self._lines = LogFeed()
        self._progress = ProgressFeed()

    def started(self, pid: int, meeting: str, on_durable: Callable[[], None]) -> None:
        self._outbox.put(AttemptStarted(**self._fence, node=self._node, pid=pid, meeting=meeting), on_durable)

    def print(self, lines: list[str]) -> None:
        self._lines.add(lines, time.monotonic())

    def say(self, line: str) -> None:
        self.print([line])

    def tail(self) -> list[str]:
        """The log's last lines."""
        return self._lines.tail()

    def progressed(self, made: protocol.ProgressMade) -> None:
        self._progress.add(made, time.monotonic())

    def saved(self, checkpoint: CheckpointRef) -> None:
        self._outbox.put(CheckpointSaved(**self._fence, checkpoint=checkpoint))

    def flush(self, everything: bool = False) -> None:
        """Send the lines and the progress that are due."""
        now_s = time.monotonic()
        while lines := self._lines.take(now_s, everything):
            self._outbox.put(LogLines(**self._fence, lines=lines))
        if made := self._progress.take(now_s, everything):
            self._outbox.put(
                Progress(
                    **self._fence,
                    step=made.step,
                    total_steps=made.total_steps,
                    tokens=made.tokens,
                    percent=percent(made.step, made.total_steps),
                    eta_s=made.eta_s,
                    metrics=made.metrics,
                )
            )

    def succeeded(self, outputs: list[Output], metrics: dict[str, float]) -> AttemptSucceeded:
        return AttemptSucceeded(**self._fence, outputs=outputs, metrics=metrics)

    def failed(self, ended: Ended) -> AttemptFailed:
        failure = ended.failure.changed(message=f"{self._who}{ended.failure.message}")
        return AttemptFailed(**self._fence, failure=failure, retryable=ended.retryable)

    def stopped(self, order: StopOrder) -> AttemptStopped:
        return AttemptStopped(**self._fence, wish=order.wish or Wish.none)

    def ends(self, final: RunMessage, on_durable: Callable[[], None]) -> None:
        """The last word."""
        self._outbox.put(final, on_durable)
        self._outbox.close()

    def abandon(self) -> None:
        """Give up what is not durable by now."""
        self._outbox.abandon()
