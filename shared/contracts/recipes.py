"""What each job type takes. The gateway checks a submission against these, the trainer reads them again.

Fields are refused when unknown (`extra="forbid"`): a misspelt parameter is an error, not a default.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field, model_validator

from shared.contracts.artifacts import ArtifactKind
from shared.contracts.written import Written

Auto = Literal["auto"]
Precision = Literal["auto", "fp32", "bf16"]


class Params(Written):
    """The parameters of one recipe."""


class ProbeParams(Params):
    """A job that trains nothing: steps, checkpoints, an artifact, and failures on demand. For tests and load."""

    steps: int = Field(3, ge=0, le=1_000_000, description="Steps to take; each reports progress.")
    step_s: float = Field(0.0, ge=0, le=3600, description="Seconds that a step lasts.")
    checkpoint_every: int = Field(0, ge=0, description="Steps between checkpoints; 0 saves none.")
    artifact_bytes: int = Field(1024, ge=0, le=10**10, description="Size of the file it publishes.")
    log_line: str = Field("", description="A line to print at every step.")
    fail_at_step: int | None = Field(None, ge=0, description="The step at which it fails.")
    fail_with: Literal["user", "crash", "kill", "out_of_memory", "hang", "pickle"] = Field(
        "crash", description="How it fails there: a user error, an exception, SIGKILL to itself, …"
    )
    fail_attempts: int = Field(1_000_000, ge=1, description="Only the first so many attempts fail.")
    ignore_sigterm: bool = Field(False, description="Ignore SIGTERM, so that only SIGKILL ends it.")


class TrainingParams(Params):
    """What all training recipes share."""

    learning_rate: float = Field(gt=0, le=10, description="Peak learning rate of AdamW.")
    epochs: float = Field(1.0, gt=0, le=1000, description="Passes over the data.")
    max_steps: int | None = Field(None, ge=1, description="Stop after so many steps, whatever `epochs` says.")
    batch_size: int | Auto = Field(
        "auto", description="Samples per device and step; `auto` finds the largest that fits."
    )
    gradient_accumulation: int = Field(1, ge=1, le=4096, description="Batches per optimizer step.")
    warmup_ratio: float = Field(0.03, ge=0, le=1, description="Part of the steps spent warming up.")
    lr_schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="Shape after the warm-up.")
    weight_decay: float = Field(0.0, ge=0, le=1)
    max_grad_norm: float = Field(1.0, gt=0)
    precision: Precision = Field(
        "auto", description="`auto`: bf16 where the processor has the instructions, else fp32."
    )
    validation_fraction: float = Field(0.05, ge=0, le=0.5, description="Held out when no validation data is given.")
    eval_steps: int | None = Field(None, ge=1, description="Steps between validations; by default ten per run.")
    early_stopping_patience: int | None = Field(None, ge=1, description="Stop after so many validations without gain.")
    save_steps: int | None = Field(None, ge=1, description="Steps between checkpoints; by default ten per run.")
    save_total_limit: int = Field(2, ge=1, le=100, description="Checkpoints kept.")
    logging_steps: int = Field(1, ge=1, description="Steps between progress reports.")
    seed: int = Field(0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _batch_size_is_positive(self) -> TrainingParams:
        if isinstance(self.batch_size, int) and self.batch_size < 1:
            raise ValueError("batch_size must be 'auto' or at least 1")
        return self


class PretrainParams(TrainingParams):
    """A Llama-style causal language model from raw text, from scratch."""

    learning_rate: float = Field(1e-3, gt=0, le=10)
    vocab_size: int = Field(4096, ge=260, le=262_144, description="Size of the byte-level BPE trained on the corpus.")
    context_length: int = Field(
        256, ge=8, le=1_048_576, description="Tokens per training window, and the model's limit."
    )
    hidden_size: int = Field(256, ge=8, le=65_536)
    intermediate_size: int | None = Field(None, ge=8, description="Width of the MLP; by default 8/3 of hidden_size.")
    layers: int = Field(4, ge=1, le=256)
    heads: int = Field(4, ge=1, le=512)
    kv_heads: int | None = Field(None, ge=1, description="Key/value heads; by default as many as heads.")
    tie_embeddings: bool = True

    @model_validator(mode="after")
    def _heads_divide(self) -> PretrainParams:
        if self.hidden_size % self.heads or (self.hidden_size // self.heads) % 2:
            raise ValueError(f"hidden_size ({self.hidden_size}) must be heads ({self.heads}) times an even number")
        if self.kv_heads and self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        return self


class SftParams(TrainingParams):
    """Supervised fine-tuning on chats or prompt/completion pairs, full or LoRA."""

    learning_rate: float = Field(2e-4, gt=0, le=10)
    base_model: str | None = Field(None, description="A hub id or a folder on the trainer; or give the input `model`.")
    method: Literal["lora", "full"] = "lora"
    lora_r: int = Field(16, ge=1, le=1024)
    lora_alpha: int = Field(32, ge=1)
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    lora_target_modules: str | list[str] = "all-linear"
    max_length: int = Field(1024, ge=8, description="Tokens per sample; longer ones are cut, and counted.")
    packing: bool = Field(True, description="Put several short samples in one row, without attention between them.")
    train_on_prompt: bool = Field(False, description="By default only the answer's tokens count in the loss.")
    merge: bool = Field(False, description="With LoRA: also publish base and adapter merged as a model.")


class ImportParams(Params):
    """Brings a model folder, a hub model or a GGUF file in as safetensors."""

    source: str | None = Field(
        None,
        min_length=1,
        description="A folder or a .gguf file on the trainer's machine, or a hub id; "
        "or give the input `file`, an uploaded .gguf.",
    )
    revision: str | None = Field(None, description="Branch, tag or commit of a hub model.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"


@dataclass(frozen=True)
class Input:
    """One named input: the kinds of artifact that it may be."""

    kinds: frozenset[ArtifactKind]
    required: bool = True


@dataclass(frozen=True)
class Recipe:
    """A job type: its parameters, its inputs, and what it publishes."""

    params: type[Params]
    output_kind: ArtifactKind
    inputs: dict[str, Input] = field(default_factory=dict)
    trains: bool = True
    """Whether it wants an accelerator where there is one."""
    in_ranks: bool = True
    """Whether several processes can share its work."""


_DATA = frozenset({ArtifactKind.file, ArtifactKind.dataset})
_MODEL = frozenset({ArtifactKind.model})

RECIPES: dict[str, Recipe] = {
    "probe": Recipe(ProbeParams, ArtifactKind.report, {"data": Input(_DATA, required=False)}, trains=False),
    "pretrain": Recipe(
        PretrainParams,
        ArtifactKind.model,
        {
            "training_data": Input(_DATA),
            "validation_data": Input(_DATA, required=False),
            "tokenizer": Input(_MODEL, required=False),
        },
    ),
    "sft": Recipe(
        SftParams,
        ArtifactKind.adapter,
        {
            "training_data": Input(_DATA),
            "validation_data": Input(_DATA, required=False),
            "model": Input(_MODEL, required=False),
        },
    ),
    "import": Recipe(
        ImportParams,
        ArtifactKind.model,
        {"file": Input(frozenset({ArtifactKind.file}), required=False)},
        trains=False,
        in_ranks=False,
    ),
}


def output_kind(job_type: str, params: Params) -> ArtifactKind:
    """What a job publishes: as its recipe says, but a full fine-tune makes a model."""
    if isinstance(params, SftParams) and params.method == "full":
        return ArtifactKind.model
    return RECIPES[job_type].output_kind
