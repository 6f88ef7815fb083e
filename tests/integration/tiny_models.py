"""Real models made on the spot: a Llama of two layers and a tokenizer trained on text of the standard library."""

from __future__ import annotations

import json
import pydoc_data.topics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.trainer.recipes.environment import prepare_environment

prepare_environment()

import torch  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from services.trainer.recipes.api import RecipeContext  # noqa: E402
from services.trainer.recipes.chat_rendering import CHATML  # noqa: E402
from services.trainer.recipes.tokenizer import train_tokenizer  # noqa: E402
from shared.contracts.artifacts import ArtifactKind, ArtifactPin  # noqa: E402
from shared.contracts.jobs import JobSpec  # noqa: E402

TOPICS: dict[str, str] = pydoc_data.topics.topics
# As SmolLM2 ships it: a default system message, no `{% generation %}`, white space behind the end of a turn.
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def corpus(topics: int = 12) -> str:
    return "\n".join(list(TOPICS.values())[:topics])


def tiny_tokenizer(template: str | None = CHATML) -> Any:
    tokenizer = train_tokenizer(iter([corpus(6)]), 400, 256)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    return tokenizer


def tiny_model(folder: Path, template: str | None = CHATML) -> Path:
    """A model folder with random weights, of 60 thousand parameters."""
    tokenizer = tiny_tokenizer(template)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        # Random weights of the usual size would give logits that no adapter can make sharp.
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def chat(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def chats(count: int = 24) -> list[dict[str, Any]]:
    return [chat(f"What is number {i}?", "It is the " + "very " * (i % 5) + f"{i}th.") for i in range(count)]


def jsonl(folder: Path, lines: Iterable[Mapping[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@dataclass
class Reports:
    """What a recipe told. `on_step` is called at every training report, with the step."""

    on_step: Callable[[int], None] = lambda step: None
    logs: list[str] = field(default_factory=list)
    losses: dict[int, float] = field(default_factory=dict)
    eval_losses: dict[int, float] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=list)
    checkpoints: list[tuple[int, Path]] = field(default_factory=list)
    kept: list[list[str]] = field(default_factory=list)
    """The checkpoint folders that were there at each `checkpoint` call."""

    def progress(
        self,
        step: int,
        total_steps: int | None = None,
        tokens: int = 0,
        eta_s: float | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        self.tokens.append(tokens)
        if metrics and "eval_loss" in metrics:
            self.eval_losses[step] = metrics["eval_loss"]
        if metrics and "loss" in metrics:
            assert {"learning_rate", "grad_norm", "tokens_per_second"} <= metrics.keys()
            self.losses[step] = metrics["loss"]
            self.on_step(step)

    def checkpoint(self, step: int, folder: Path, metrics: Mapping[str, float] | None = None) -> None:
        self.checkpoints.append((step, folder))
        self.kept.append(sorted(path.name for path in folder.parent.iterdir()))

    def await_upload(self) -> None:
        """Nothing is uploaded here."""

    def log(self, line: str) -> None:
        self.logs.append(line)


def context(
    workdir: Path,
    job_type: str,
    params: dict[str, Any],
    inputs: Mapping[str, Path],
    reports: Reports | None = None,
    **more: Any,
) -> RecipeContext:
    """A context as the trainer's child makes it. `more`: fields of RecipeContext."""
    workdir.mkdir(parents=True, exist_ok=True)
    pins = {
        name: ArtifactPin(
            name=f"my-{name.replace('_', '-')}",
            version=3,
            kind=ArtifactKind.file if name.endswith("data") else ArtifactKind.model,
            manifest_key="",
        )
        for name in inputs
    }
    return RecipeContext(
        spec=JobSpec(type=job_type, params=params, inputs=pins, output="made"),
        inputs=inputs,
        workdir=workdir,
        resume_from=more.pop("resume_from", None),
        report=reports or Reports(),
        stopping=more.pop("stopping", lambda: False),
        **more,
    )
