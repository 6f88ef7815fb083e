"""Progress: not too often, never without the last, with the time that is left."""

from __future__ import annotations

import math

from services.trainer.execution import finite_metrics
from services.trainer.progress import INTERVAL_S, ProgressFeed, percent
from services.trainer.protocol import ProgressMade


def test_reports_in_between_are_joined_and_the_last_is_sent() -> None:
    feed = ProgressFeed()
    feed.add(ProgressMade(1, 10, metrics={"loss": 3.0}), 0.0)
    assert feed.take(0.0)
    feed.add(ProgressMade(2, 10, metrics={"loss": 2.0}), 0.01)
    feed.add(ProgressMade(3, 10, metrics={"accuracy": 0.5}), 0.02)
    assert feed.take(0.03) is None
    sent = feed.take(INTERVAL_S)
    assert sent
    assert (sent.step, sent.metrics) == (3, {"loss": 2.0, "accuracy": 0.5})
    feed.add(ProgressMade(4, 10), INTERVAL_S)
    last = feed.take(INTERVAL_S, everything=True)
    assert last
    assert last.step == 4


def test_the_time_left_follows_from_the_steps_of_this_run() -> None:
    feed = ProgressFeed()
    feed.add(ProgressMade(50, 100), 0.0)
    first = feed.take(0.0)
    assert first
    assert first.eta_s is None
    feed.add(ProgressMade(60, 100), 5.0)
    later = feed.take(5.0)
    assert later
    assert later.eta_s == 20.0


def test_the_recipes_own_estimate_is_kept() -> None:
    feed = ProgressFeed()
    feed.add(ProgressMade(1, 10, eta_s=7.0), 0.0)
    made = feed.take(0.0)
    assert made
    assert made.eta_s == 7.0


def test_percent_is_known_where_the_total_is() -> None:
    assert (percent(1, 4), percent(5, 4), percent(1, None), percent(0, 0)) == (25.0, 100.0, None, None)


def test_what_json_cannot_carry_is_left_out() -> None:
    assert finite_metrics({"loss": math.nan, "lr": math.inf, "ok": 1}) == {"ok": 1.0}
