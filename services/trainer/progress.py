"""A run's progress: not more often than readers need, never without the last, with percent and time left."""

from __future__ import annotations

from services.trainer.protocol import ProgressMade

INTERVAL_S = 0.2


class ProgressFeed:
    """Takes every report, hands one out when it is due. Metrics of reports in between are kept."""

    def __init__(self) -> None:
        self._waiting: ProgressMade | None = None
        self._last_sent_s = float("-inf")
        self._first: tuple[float, int] | None = None
        self._newest_s = 0.0

    def add(self, made: ProgressMade, now_s: float) -> None:
        self._first = self._first or (now_s, made.step)
        self._newest_s = now_s
        earlier = self._waiting.metrics if self._waiting else {}
        self._waiting = ProgressMade(made.step, made.total_steps, made.tokens, made.eta_s, {**earlier, **made.metrics})

    def take(self, now_s: float, everything: bool = False) -> ProgressMade | None:
        """The newest progress, if one waits and is due; its `eta_s` filled in where the recipe gave none."""
        if self._waiting is None or not (everything or now_s - self._last_sent_s >= INTERVAL_S):
            return None
        made, self._waiting, self._last_sent_s = self._waiting, None, now_s
        if made.eta_s is None:
            made = ProgressMade(made.step, made.total_steps, made.tokens, self._eta_s(made), made.metrics)
        return made

    def _eta_s(self, made: ProgressMade) -> float | None:
        if self._first is None or made.total_steps is None:
            return None
        first_s, first_step = self._first
        taken = made.step - first_step
        if taken <= 0:
            return 0.0 if made.step >= made.total_steps else None
        return max(0.0, (made.total_steps - made.step) * (self._newest_s - first_s) / taken)


def percent(step: int, total_steps: int | None) -> float | None:
    """How much of it is done, 0 to 100."""
    return min(100.0, 100.0 * step / total_steps) if total_steps else None
