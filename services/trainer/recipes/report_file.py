"""`training.json` beside the weights: how they came about, for whoever finds them later."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import orjson

from services.trainer.recipes.environment import cpu_count, library_versions, machine
from services.trainer.recipes.ledger import Ledger
from services.trainer.recipes.precision import ChosenPrecision

CURVE_POINTS = 200


def write_report(
    folder: Path, recipe: str, params: dict[str, Any], precision: ChosenPrecision, ledger: Ledger, data: dict[str, int]
) -> None:
    """`data`: how much there was of what (samples, tokens, rows, cut ones …)."""
    report = {
        "recipe": recipe,
        "params": params,
        "data": data,
        "dtype": precision.dtype,
        "dtype_reason": precision.reason,
        "batch_size": ledger.batch_size,
        "gradient_accumulation": ledger.accumulation,
        "gradient_checkpointing": ledger.checkpointing,
        "batch_size_reason": ledger.batch_reason,
        "accelerator": machine().accelerator,
        "cpu_cores": cpu_count(),
        **ledger.metrics(),
        "best_step": ledger.best_step or None,
        "loss_curve": thinned(ledger.losses),
        "eval_loss_curve": ledger.eval_losses,
        "versions": library_versions(),
    }
    (folder / "training.json").write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2) + b"\n")


def thinned(curve: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most about CURVE_POINTS points, the first and the last among them."""
    step = -(-len(curve) // CURVE_POINTS) or 1
    return curve if step == 1 else [*curve[:-1:step], curve[-1]]


def add_runs(folder: Path, runs: Path) -> None:
    """The TensorBoard files of the training, as `runs/` in an output."""
    shutil.copytree(runs, folder / "runs", dirs_exist_ok=True)


def keep_plain(folder: Path) -> None:
    """Take away what a trainer writes beside the weights and no reader needs: pickles, and a card with local paths."""
    for name in ("training_args.bin", "README.md"):
        (folder / name).unlink(missing_ok=True)
