"""A corpus as one long row of token ids on disk, read in windows through a memory map. Nothing is padded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from services.trainer.recipes.text_data import END

BATCH = 64
"""Pieces of text that are tokenized together."""


def write_tokens(pieces: Iterator[str | None], tokenizer: Any, path: Path) -> int:
    """Tokenize a corpus once into `path`, with an end-of-text token after each document. Returns the count."""
    count, held = 0, 0
    batch: list[str | None] = []
    with path.open("wb") as file:
        for piece in pieces:
            batch.append(piece)
            held += len(piece or "")
            if len(batch) >= BATCH or held >= BATCH << 14:
                count += _write(batch, tokenizer, file)
                batch, held = [], 0
        return count + _write(batch, tokenizer, file)


def _write(batch: list[str | None], tokenizer: Any, file: Any) -> int:
    texts = [text for text in batch if text is not END]
    encoded = iter(tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else [])
    ids = [token for text in batch for token in ([tokenizer.eos_token_id] if text is END else next(encoded))]
    file.write(np.asarray(ids, dtype=np.uint32).tobytes())
    return len(ids)


class Windows(torch.utils.data.Dataset):  # type: ignore[misc]  # torch is not followed by mypy
    """Windows `first` to `last` (exclusive) of `length` tokens each: `{"input_ids": int64[length]}`."""

    def __init__(self, path: Path, length: int, first: int, last: int) -> None:
        self.tokens = np.memmap(path, dtype=np.uint32, mode="r")
        self.length = length
        self.first = first
        self.last = last

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, index: int) -> dict[str, Any]:
        start = (self.first + index) * self.length
        return {"input_ids": self.tokens[start : start + self.length].astype(np.int64)}


def collate(windows: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch: the labels are the tokens themselves, which the model shifts by one."""
    ids = torch.from_numpy(np.stack([window["input_ids"] for window in windows]))
    return {"input_ids": ids, "labels": ids.clone(), "real_tokens": ids.numel()}
