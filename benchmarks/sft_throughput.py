"""The `sft` recipe ÷ a plain `transformers.Trainer`: real tokens/s on the same model, data, precision and batch.

    python -m benchmarks.sft_throughput [--model FOLDER] [--rounds 3] [--steps 32] [--batch 4] [--precision auto]
                                            [--clock wall]

Three sides take turns for some rounds: the plain trainer on padded batches, the recipe without packing, and the recipe
with packing. Each is timed from its first step's end to its last, so that loading counts for none. Padding is no token.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.trainer.recipes.environment import cpu_count, prepare_environment

prepare_environment()

import torch  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from transformers import (  # noqa: E402
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    LlamaConfig,
    LlamaForCausalLM,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from services.trainer.recipes import sft  # noqa: E402
from services.trainer.recipes.api import RecipeContext  # noqa: E402
from services.trainer.recipes.chat_data import samples  # noqa: E402
from services.trainer.recipes.chat_rendering import CHATML, Renderer  # noqa: E402
from services.trainer.recipes.crew import Crew  # noqa: E402
from services.trainer.recipes.model_precision import precision_for  # noqa: E402
from services.trainer.recipes.precision import ChosenPrecision  # noqa: E402
from services.trainer.recipes.tokenizer import train_tokenizer  # noqa: E402
from shared.contracts.jobs import JobSpec  # noqa: E402

PROMISED_RATIO = 1.0
PROMISED_PACKING = 1.5
MAX_LENGTH = 256
WORDS = ["queue", "job", "artifact", "replica", "token", "batch", "scheduler", "adapter", "model", "trains", "serves"]


@dataclass
class Clock:
    """Tokens after each step, and when. It is the recipe's reporter, too."""

    now = staticmethod(time.perf_counter)
    marks: list[tuple[float, int]] = field(default_factory=list)

    def mark(self, tokens: int) -> None:
        self.marks.append((self.now(), tokens))

    def progress(
        self,
        step: int,
        total_steps: int | None = None,
        tokens: int = 0,
        eta_s: float | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        self.mark(tokens)

    def checkpoint(self, step: int, folder: Path, metrics: Mapping[str, float] | None = None) -> None: ...

    def await_upload(self) -> None: ...

    def log(self, line: str) -> None: ...

    @property
    def tokens_per_second(self) -> float:
        (start, before), (end, after) = self.marks[0], self.marks[-1]
        return (after - before) / (end - start)


def write_chats(folder: Path, count: int) -> Path:
    """Short chats of varied length, as most fine-tuning data is."""
    draw = random.Random(0)
    folder.mkdir()
    with (folder / "chats.jsonl").open("w") as file:
        for _ in range(count):
            question, answer = (" ".join(draw.choices(WORDS, k=draw.randint(4, 30))) for _ in range(2))
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": turns}) + "\n")
    return folder


def small_model(folder: Path) -> Path:
    """Random weights, of four layers of a width of 256."""
    tokenizer = train_tokenizer(iter([" ".join(WORDS) * 100]), 8192, 512)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def plain(model: Path, data: Path, workdir: Path, precision: ChosenPrecision, steps: int, batch: int) -> float:
    """What someone writes who has the model, the rendered samples and transformers."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    renderer = Renderer(tokenizer, MAX_LENGTH)
    rows = [
        {"input_ids": one.input_ids, "labels": one.labels, "attention_mask": [1] * len(one.input_ids)}
        for sample in samples(data, "training_data")
        for one in renderer.render(sample)
    ]
    clock = Clock()

    class Counting(Trainer):  # type: ignore[misc]  # transformers is not followed by mypy
        tokens = 0

        def training_step(self, model: Any, inputs: Any, *more: Any) -> Any:
            self.tokens += int(inputs["attention_mask"].sum())
            return super().training_step(model, inputs, *more)

    class Marks(TrainerCallback):  # type: ignore[misc]
        def on_log(self, *_: Any, **__: Any) -> None:
            if trainer.state.global_step and len(clock.marks) < trainer.state.global_step:
                clock.mark(trainer.tokens)

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=precision.dtype)
    adapter = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = Counting(
        model=get_peft_model(loaded, adapter),
        args=TrainingArguments(
            output_dir=str(workdir),
            max_steps=steps,
            per_device_train_batch_size=batch,
            learning_rate=1e-4,
            bf16=precision.bf16,
            use_cpu=not torch.cuda.is_available(),
            save_strategy="no",
            report_to="none",
            logging_steps=1,
            disable_tqdm=True,
        ),
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        callbacks=[Marks()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return clock.tokens_per_second


def recipe(model: Path, data: Path, workdir: Path, wanted: str, steps: int, batch: int, packing: bool) -> float:
    clock = Clock()
    params = {
        "base_model": str(model),
        "max_steps": None if packing else steps,
        "batch_size": batch,
        "learning_rate": 1e-4,
        "max_length": MAX_LENGTH,
        "validation_fraction": 0,
        "save_steps": 10 * steps,
        "packing": packing,
        "precision": wanted,
    }
    spec = JobSpec(type="sft", params=params)
    sft.run(RecipeContext(spec, {"training_data": data}, workdir, None, clock, lambda: False))
    return clock.tokens_per_second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model folder; by default a small one is made")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    parser.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="cpu: seconds of all the process's threads, for a machine that others keep busy",
    )
    options = parser.parse_args()
    if options.clock == "cpu":
        Clock.now = staticmethod(time.process_time)
    torch.set_num_threads(cpu_count())
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        model = options.model or small_model(root / "model")
        # One epoch for every side: of a part of it, one that sorts by length would see other samples than the rest.
        data = write_chats(root / "data", options.batch * options.steps)
        chosen = precision_for(options.precision, AutoConfig.from_pretrained(model).hidden_size, Crew())
        print(f"computing in {chosen.reason}; {cpu_count()} cores; batch {options.batch}")
        common = (options.steps, options.batch)
        sides: dict[str, Callable[[Path], float]] = {
            "plain": lambda work: plain(model, data, work, chosen, *common),
            "sft": lambda work: recipe(model, data, work, options.precision, *common, packing=False),
            "sft packed": lambda work: recipe(model, data, work, options.precision, *common, packing=True),
        }
        speeds: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(options.rounds):
            for name, side in sides.items():
                work = root / f"{number}-{name}"
                work.mkdir()
                speeds[name].append(side(work))
            print("  ".join(f"{name} {values[-1]:,.0f} tokens/s" for name, values in speeds.items()), flush=True)
    middle = {name: statistics.median(values) for name, values in speeds.items()}
    print(f"sft ÷ plain Trainer: {middle['sft'] / middle['plain']:.2f} (promised ≥ {PROMISED_RATIO})")
    packing = middle["sft packed"] / middle["plain"]
    print(
        f"sft packed ÷ plain Trainer's padded batches: {packing:.2f} (promised > {PROMISED_PACKING} on short samples)"
    )
    print(f"sft packed ÷ sft grouped by length: {middle['sft packed'] / middle['sft']:.2f}")


if __name__ == "__main__":
    main()
