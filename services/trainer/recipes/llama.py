"""The model of a pretraining: Llama's architecture, which every serving engine knows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

from services.trainer.recipes.batch_size import ModelSize
from services.trainer.recipes.corpus import collate
from services.trainer.recipes.ledger import Ledger
from services.trainer.recipes.training import MakeTrainer, Measured, Trained
from shared.contracts.recipes import PretrainParams

ADAM_BETA2 = 0.95
"""As GPT-3, Llama and most since pretrain with; 0.999 averages over more steps than a short run has."""


class PretrainTrainer(Measured, Trainer):  # type: ignore[misc]  # transformers is not followed by mypy
    """transformers' own trainer, measured."""


def config(params: PretrainParams, tokenizer: Any) -> Any:
    """The LlamaConfig of the params, for this tokenizer."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=params.hidden_size,
        intermediate_size=params.intermediate_size or _intermediate_size(params.hidden_size),
        num_hidden_layers=params.layers,
        num_attention_heads=params.heads,
        num_key_value_heads=params.kv_heads or params.heads,
        max_position_embeddings=params.context_length,
        tie_word_embeddings=params.tie_embeddings,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _intermediate_size(hidden_size: int) -> int:
    """8/3 of hidden_size (Touvron et al. 2023, arXiv:2302.13971), up to a multiple of 32 as kernels like it."""
    return 32 * math.ceil(hidden_size * 8 / 3 / 32)


def size(config: Any) -> ModelSize:
    """What it will take, without making it."""
    with torch.device("meta"):
        parameters = LlamaForCausalLM(config).num_parameters()
    return ModelSize(
        parameters=parameters,
        trainable=parameters,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        vocabulary=config.vocab_size,
    )


def trainer_maker(config: Any, params: PretrainParams, training: Any, validation: Any) -> MakeTrainer:
    """Makes a fresh model, the same for the same seed, in a fresh trainer."""

    def make(arguments: dict[str, Any], ledger: Ledger) -> PretrainTrainer:
        set_seed(params.seed)
        trainer = PretrainTrainer(
            model=LlamaForCausalLM(config),
            args=TrainingArguments(**arguments, adam_beta2=ADAM_BETA2),
            train_dataset=training,
            eval_dataset=validation if len(validation) else None,
            data_collator=collate,
        )
        trainer.ledger = ledger
        return trainer

    return make


def save(made: Trained, folder: Path, tokenizer: Any) -> None:
    """Weights, tokenizer and generation config: a model that serves."""
    made.trainer.model.config.use_cache = True  # the trainer turned it off
    made.trainer.save_model(str(folder))
    tokenizer.save_pretrained(str(folder))
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    ).save_pretrained(str(folder))
