"""A run's share of its job's trace."""

from __future__ import annotations

from services.trainer import protocol
from shared.contracts.jobs import AttemptFailed, DesiredAttempt, RunMessage
from shared.contracts.nodes import RunRef
from shared.tracing import Kind, Span, span


class RunTrace:
    """The attempt from its first step to the last word about it, and below it the parts of its work."""

    def __init__(self, desired: DesiredAttempt, ref: RunRef, node: str) -> None:
        self._about = {**ref.model_dump(), "node": node}
        self._attempt = self._span("attempt", desired.traceparent, "consumer")
        self._recipe = Span(None)
        self.traceparent = self._attempt.traceparent
        """What the run's messages carry."""

    def part(self, name: str) -> Span:
        return self._span(name, self.traceparent)

    def recipe_begins(self, job_type: str) -> None:
        self._recipe = self.part(f"recipe {job_type}")

    def recipe_ends(self, said: protocol.Done | protocol.Failed | protocol.Halted | None) -> None:
        """With its last word, or without one when the child is gone; what comes after the first changes nothing."""
        if isinstance(said, protocol.Failed):
            self._recipe.fail(said.message)
        elif said is None:
            self._recipe.fail("the process ended without a last word")
        self._recipe.end()

    def ends(self, final: RunMessage) -> None:
        self._attempt.set(outcome=type(final).__name__)
        if isinstance(final, AttemptFailed):
            self._attempt.fail(final.failure.message)
        self._attempt.end()

    def _span(self, name: str, parent: str | None, kind: Kind = "internal") -> Span:
        begun = span(name, parent, kind=kind)
        begun.set(**self._about)
        return begun
