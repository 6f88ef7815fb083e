"""The tokenizer of a pretraining: a byte-level BPE trained on the corpus, or one that was given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from services.trainer.recipes.api import RecipeError
from shared.contracts.jobs import FailureReason

END_OF_TEXT = "<|endoftext|>"


def train_tokenizer(texts: Iterator[str], vocab_size: int, context_length: int) -> Any:
    """Byte-level BPE (as GPT-2's): any text can be written with it. Smaller than `vocab_size` on a small corpus."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=context_length,
        clean_up_tokenization_spaces=False,
    )


def given_tokenizer(folder: Path, context_length: int) -> Any:
    """The tokenizer of a model artifact. Raises RecipeError where there is none, or it has no end-of-text token."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise RecipeError(
            FailureReason.input_missing,
            "The input tokenizer holds no tokenizer that transformers can load",
            "Give a model artifact that has a tokenizer.json.",
            "tokenizer",
        ) from error
    if tokenizer.eos_token_id is None:
        raise RecipeError(
            FailureReason.bad_data,
            "The input tokenizer has no end-of-text token, which documents are parted by",
            "Give a tokenizer with an eos_token.",
            "tokenizer",
        )
    tokenizer.model_max_length = context_length
    tokenizer.chat_template = None
    return tokenizer
