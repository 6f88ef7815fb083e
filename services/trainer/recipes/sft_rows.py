"""The rows of a fine-tuning: rendered, split, packed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from services.trainer.recipes import chat_data
from services.trainer.recipes.api import RecipeContext, Stopped
from services.trainer.recipes.base_model import BaseModel, context_length, load_tokenizer
from services.trainer.recipes.chat_rendering import Rendered, Renderer
from services.trainer.recipes.jsonl import bad_data
from services.trainer.recipes.rows import Counts, pack, write_rows
from services.trainer.recipes.splits import held_out
from shared.contracts.recipes import SftParams


@dataclass(frozen=True)
class SftRows:
    """Rows to train on and to validate with, and the samples behind the former."""

    training: Any
    validation: Any
    counts: Counts
    max_length: int

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(sum(map(int, lengths)) for lengths in self.training["seq_lengths"])


def prepare(
    context: RecipeContext, params: SftParams, base: BaseModel, config: Any, samples: dict[str, int]
) -> tuple[Any, SftRows]:
    """The tokenizer and the rows. Raises RecipeError where the template refuses a chat or nothing is left to learn."""
    first = next(chat_data.samples(context.inputs["training_data"], "training_data"))
    tokenizer = load_tokenizer(base, isinstance(first, chat_data.Chat), context)
    limit = context_length(config)
    max_length = min(params.max_length, limit) if limit else params.max_length
    if max_length < params.max_length:
        context.report.log(f"max_length is {max_length} instead of {params.max_length}: the model takes no more")
    renderer = Renderer(tokenizer, max_length, params.train_on_prompt)

    own = "validation_data" in context.inputs
    aside = frozenset() if own else held_out(samples["training_data"], params.validation_fraction, params.seed)

    def write(name: str, param: str, wanted: Any) -> tuple[Any, Counts]:
        counts = Counts()
        path = context.workdir / f"{name}.arrow"
        rows = write_rows(_rendered(context, renderer, param, wanted), path, counts)
        _tell(context, name, counts, max_length)
        return rows, counts

    training, counts = write("training", "training_data", lambda index: index not in aside)
    if not counts.samples:
        raise bad_data(
            f"Nothing is left to learn: no answer begins within the first {max_length} tokens of its sample",
            "training_data",
            "Raise max_length.",
        )
    validation, validation_counts = write(
        "validation", "validation_data" if own else "training_data", (lambda _: own) if own else aside.__contains__
    )
    if params.packing:
        training = pack(training, counts, max_length)
        validation = pack(validation, validation_counts, max_length) if validation_counts.samples else validation
        context.report.log(f"packed {counts.samples:,} samples into {len(training):,} rows")
    return tokenizer, SftRows(training, validation, counts, max_length)


def _rendered(context: RecipeContext, renderer: Renderer, param: str, wanted: Any) -> Iterator[Rendered]:
    def one(index: int, sample: chat_data.Sample) -> Iterator[Rendered]:
        if context.stopping():
            raise Stopped
        return renderer.render(sample) if wanted(index) else iter(())

    numbered = enumerate(chat_data.samples(context.inputs[param], param))
    return chain.from_iterable(one(index, sample) for index, sample in numbered)


def _tell(context: RecipeContext, name: str, counts: Counts, max_length: int) -> None:
    if counts.samples or counts.dropped:
        cut = f"; {counts.cut:,} were cut at {max_length} tokens" if counts.cut else ""
        dropped = f", of which {counts.dropped:,} had no answer left and are not used" if counts.dropped else ""
        context.report.log(
            f"{name}: {counts.samples:,} samples of {counts.tokens:,} tokens, {counts.trained_tokens:,} of them learnt"
            f"{cut}{dropped}"
        )
