"""What a job has to its account over all its attempts. It travels in every checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

import orjson

from services.trainer.recipes.batch_size import BatchSize

FOLDER = "llmos"
"""The folder within a checkpoint for what the trainer itself does not save."""

MOST_POINTS = 4000
"""Of the loss curve; past that every other point goes."""


@dataclass
class Ledger:
    """`tokens` are real ones, without padding; `seconds` are those of training, without validation and saving."""

    batch_size: int = 0
    accumulation: int = 1
    checkpointing: bool = False
    batch_reason: str = ""
    tokens: int = 0
    seconds: float = 0.0
    train_loss_first: float | None = None
    train_loss: float | None = None
    eval_loss_first: float | None = None
    eval_loss: float | None = None
    best_eval_loss: float | None = None
    best_step: int = 0
    finished: bool = False
    """Nothing is left to train: only the outputs are to be made."""
    evaluations_without_gain: int = 0
    losses: list[tuple[int, float]] = field(default_factory=list)
    eval_losses: list[tuple[int, float]] = field(default_factory=list)

    def trained(self, step: int, loss: float) -> None:
        if self.train_loss_first is None:
            self.train_loss_first = loss
        self.train_loss = loss
        self.losses.append((step, loss))
        if len(self.losses) > MOST_POINTS:
            self.losses = self.losses[::2]

    def evaluated(self, step: int, loss: float) -> bool:
        """Note a validation. True where it is the best of those that followed a step."""
        self.eval_loss = loss
        self.eval_losses.append((step, loss))
        if self.eval_loss_first is None:
            self.eval_loss_first = loss
        if not step:
            return False
        if self.best_eval_loss is not None and loss >= self.best_eval_loss:
            self.evaluations_without_gain += 1
            return False
        self.best_eval_loss, self.best_step, self.evaluations_without_gain = loss, step, 0
        return True

    def validated(self, step: int) -> bool:
        """Whether the weights after `step` have been validated."""
        return bool(self.eval_losses) and self.eval_losses[-1][0] == step

    def take_batch(self, batch: BatchSize) -> None:
        self.batch_size, self.accumulation = batch.batch_size, batch.accumulation
        self.batch_reason, self.checkpointing = batch.reason, batch.checkpointing

    @property
    def batch(self) -> BatchSize:
        return BatchSize(self.batch_size, self.accumulation, self.batch_reason, self.checkpointing)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    def metrics(self) -> dict[str, float]:
        """The job's figures, as far as there are any."""
        figures = {
            "train_loss_first": self.train_loss_first,
            "train_loss": self.train_loss,
            "eval_loss_first": self.eval_loss_first,
            "eval_loss": self.eval_loss,
            "best_eval_loss": self.best_eval_loss,
            "tokens": float(self.tokens),
            "tokens_per_second": self.tokens_per_second,
            "seconds": self.seconds,
        }
        return {name: value for name, value in figures.items() if value is not None}

    def save(self, checkpoint: Path) -> None:
        folder = checkpoint / FOLDER
        folder.mkdir(exist_ok=True)
        part = folder / "ledger.part"
        part.write_bytes(orjson.dumps(asdict(self)))
        part.rename(folder / "ledger.json")

    @classmethod
    def load(cls, checkpoint: Path | None) -> Ledger:
        """The account as of `checkpoint`, or a new one. A checkpoint without one is broken: OSError or ValueError."""
        if checkpoint is None:
            return cls()
        return cls(**orjson.loads((checkpoint / FOLDER / "ledger.json").read_bytes()))


def whole_checkpoints(folder: Path) -> list[Path]:
    """A trainer's own checkpoints, oldest first: those with the account, which is written last."""
    whole = [path.parent.parent for path in folder.glob(f"checkpoint-*/{FOLDER}/ledger.json")]
    return sorted(whole, key=lambda path: int(path.name.rpartition("-")[2]))
