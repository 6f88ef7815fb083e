"""The training recipes on tiny real models: they learn, stop, go on where they were, and publish what serves."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.tiny_models import Reports, chats, context, corpus, jsonl, tiny_model

import torch  # isort: skip  # the module before sets the environment that torch reads
from peft import PeftModel
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from services.trainer.recipes import pretrain, sft
from services.trainer.recipes.answer_trainer import AnswerTrainer
from services.trainer.recipes.api import MadeOutput, RecipeError, Stopped
from services.trainer.recipes.callbacks import Watch
from services.trainer.recipes.ledger import FOLDER
from shared.contracts.artifacts import ArtifactKind
from shared.contracts.jobs import FailureReason

pytestmark = pytest.mark.slow

PICKLES = {".bin", ".pt", ".pth", ".pkl"}
SMALL = {"vocab_size": 300, "context_length": 32, "hidden_size": 32, "layers": 2, "heads": 2, "batch_size": 4}
SFT: dict[str, Any] = {"precision": "fp32", "learning_rate": 0.02, "lora_r": 4, "batch_size": 2, "max_length": 128}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return jsonl(tmp_path_factory.mktemp("data"), chats())


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    (folder / "topics.txt").write_text(corpus())
    return folder


def finetune(workdir: Path, base: Path, data: Path, reports: Reports | None = None, **params: Any) -> list[MadeOutput]:
    return sft.run(context(workdir, "sft", {**SFT, **params}, {"training_data": data, "model": base}, reports))


def report_of(made: MadeOutput) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((made.folder / "training.json").read_text())
    return found


def files(made: MadeOutput) -> set[str]:
    return {path.relative_to(made.folder).as_posix() for path in made.folder.rglob("*") if path.is_file()}


def test_a_pretrained_model_loads_and_writes(tmp_path: Path, text: Path) -> None:
    reports = Reports()
    params = {**SMALL, "max_steps": 40, "learning_rate": 0.01, "eval_steps": 20}
    (made,) = pretrain.run(context(tmp_path, "pretrain", params, {"training_data": text}, reports))

    assert (made.name, made.kind, made.parents) == ("made", ArtifactKind.model, ["my-training-data@3"])
    assert made.metrics["train_loss"] < made.metrics["train_loss_first"] - 1
    assert made.metrics["eval_loss"] < made.metrics["eval_loss_first"] - 1
    assert made.metrics["tokens"] == 40 * 4 * 32 == reports.tokens[-1]
    assert sorted(reports.eval_losses) == [0, 20, 40]
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= files(made)
    assert not {path for path in files(made) if Path(path).suffix in PICKLES}

    tokenizer, model = AutoTokenizer.from_pretrained(made.folder), AutoModelForCausalLM.from_pretrained(made.folder)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.config.max_position_embeddings == tokenizer.model_max_length == 32
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == model.config.eos_token_id
    assert model.config.use_cache
    assert tokenizer.chat_template is None
    assert tokenizer.decode(tokenizer("Zwölf 🎉\n  x")["input_ids"]) == "Zwölf 🎉\n  x"
    written = model.generate(**tokenizer("The", return_tensors="pt"), max_new_tokens=8, min_new_tokens=8)
    assert written.shape[1] == 8 + len(tokenizer("The")["input_ids"])


def test_the_outputs_say_how_they_came_about(tmp_path: Path, text: Path) -> None:
    params = {**SMALL, "max_steps": 3, "batch_size": "auto"}
    (made,) = pretrain.run(context(tmp_path, "pretrain", params, {"training_data": text}))

    report = report_of(made)
    assert report["dtype"] == "float32"
    assert "fp32" in report["dtype_reason"]
    assert report["batch_size"] >= 1
    assert report["batch_size_reason"].startswith(f"{report['batch_size']}, of rows of up to 32 tokens")
    assert [step for step, _ in report["loss_curve"]] == [1, 2, 3]
    assert {"torch", "transformers"} <= report["versions"].keys()
    assert report["tokens_per_second"] > 0
    events = EventAccumulator(str(made.folder / "runs")).Reload()
    assert [scalar.step for scalar in events.Scalars("loss")] == [1, 2, 3]


def test_a_given_tokenizer_is_used_and_own_validation_data_too(tmp_path: Path, text: Path, base: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.txt").write_text("Short.")
    inputs = {"training_data": text, "tokenizer": base, "validation_data": other}
    (made,) = pretrain.run(context(tmp_path / "work", "pretrain", {**SMALL, "max_steps": 1}, inputs))
    assert made.metadata["vocab_size"] == len(AutoTokenizer.from_pretrained(base)) > 300
    assert "eval_loss" in made.metrics


def test_a_corpus_shorter_than_a_window_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.txt").write_text("Too short.")
    with pytest.raises(RecipeError, match="fewer than one window of 32"):
        pretrain.run(context(tmp_path / "work", "pretrain", SMALL, {"training_data": folder}))


def test_lora_learns_the_answers_and_its_adapter_fits_the_base(tmp_path: Path, base: Path, data: Path) -> None:
    (made,) = finetune(tmp_path, base, data, epochs=6)

    assert (made.kind, made.metadata["base_model"]) == (ArtifactKind.adapter, "my-model@3")
    assert made.parents == ["my-training-data@3", "my-model@3"]
    assert made.metrics["train_loss"] < 0.6 * made.metrics["train_loss_first"]
    assert made.metrics["eval_loss"] < made.metrics["eval_loss_first"]
    names = {path for path in files(made) if not path.startswith("runs/")}
    assert names >= {"adapter_config.json", "adapter_model.safetensors", "training.json"}
    assert not {path for path in names if Path(path).suffix in {*PICKLES, ".md"}}
    config = json.loads((made.folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["modules_to_save"]) == ("my-model@3", None)
    weights = load_file(made.folder / "adapter_model.safetensors")
    assert all("lora_" in name for name in weights)
    assert not any("embed" in name or "lm_head" in name for name in weights)

    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base)
    adapted = PeftModel.from_pretrained(model, made.folder)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is number 7?"}], add_generation_prompt=True, return_tensors="pt"
    )
    answer = adapted.generate(**prompt, max_new_tokens=4, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer).startswith("It is"), "the base, of random weights, could not know"


def test_merge_publishes_a_model_that_answers_like_base_and_adapter(tmp_path: Path, base: Path, data: Path) -> None:
    adapter, merged = finetune(tmp_path, base, data, max_steps=5, merge=True)
    assert (merged.name, merged.kind) == ("made-merged", ArtifactKind.model)
    ids = torch.arange(10)[None]
    both = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter.folder)
    one = AutoModelForCausalLM.from_pretrained(merged.folder)
    torch.testing.assert_close(one(ids).logits, both(ids).logits, atol=1e-4, rtol=1e-3)
    assert not torch.allclose(one(ids).logits, AutoModelForCausalLM.from_pretrained(base)(ids).logits, atol=1e-2)


def test_full_fine_tuning_makes_a_model_in_the_format_of_its_base(tmp_path: Path, base: Path, data: Path) -> None:
    half = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(half)
    AutoTokenizer.from_pretrained(base).save_pretrained(half)
    (made,) = finetune(tmp_path / "work", half, data, method="full", learning_rate=0.005, epochs=3)
    assert made.kind is ArtifactKind.model
    assert made.metrics["train_loss"] < made.metrics["train_loss_first"]
    assert AutoModelForCausalLM.from_pretrained(made.folder, dtype="auto").dtype is torch.bfloat16
    assert AutoTokenizer.from_pretrained(made.folder).chat_template


def test_pairs_are_learnt_without_a_chat_template(tmp_path: Path, data: Path) -> None:
    base = tiny_model(tmp_path / "base", template=None)
    pairs = jsonl(tmp_path / "pairs", [{"prompt": f"{i} plus one is", "completion": f" {i + 1}."} for i in range(12)])
    reports = Reports()
    finetune(tmp_path / "work", base, pairs, reports, max_steps=2)
    assert not any("ChatML" in line for line in reports.logs)
    finetune(tmp_path / "chats", base, data, reports, max_steps=1)
    assert any(line.startswith("my-model@3 has no chat template: a plain one (ChatML)") for line in reports.logs)


class StopAt:
    """Asks for a stop once a step was reported."""

    def __init__(self, step: int) -> None:
        self.asked = False
        self.step = step
        self.reports = Reports(on_step=self.look)

    def look(self, step: int) -> None:
        self.asked = self.asked or step >= self.step

    def stopping(self) -> bool:
        return self.asked


Resumable = Callable[[Path, Reports, Any], list[MadeOutput]]


def whole_and_in_two(tmp_path: Path, run: Resumable) -> tuple[MadeOutput, MadeOutput, Reports, Reports, Path]:
    """The same job uninterrupted, and stopped after step 4 and taken up again elsewhere."""
    whole = Reports()
    (expected, *_) = run(tmp_path / "whole", whole, {})
    stop = StopAt(4)
    with pytest.raises(Stopped):
        run(tmp_path / "first", stop.reports, {"stopping": stop.stopping})
    step, folder = stop.reports.checkpoints[-1]
    assert step == max(stop.reports.losses)
    moved = folder.rename(tmp_path / "checkpoint")  # it comes back from the store under another name
    (actual, *_) = run(tmp_path / "second", stop.reports, {"resume_from": moved})
    return expected, actual, whole, stop.reports, moved


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
def test_a_stopped_fine_tuning_goes_on_exactly(tmp_path: Path, base: Path, data: Path, packing: bool) -> None:
    params = {
        **SFT,
        "epochs": 3 if packing else 1,
        "packing": packing,
        "lora_dropout": 0.1,
        "gradient_accumulation": 2,
        "batch_size": 1,
    }
    inputs = {"training_data": data, "model": base}

    def run(workdir: Path, reports: Reports, more: Any) -> list[MadeOutput]:
        return sft.run(context(workdir, "sft", params, inputs, reports, **more))

    expected, actual, whole, parts, _ = whole_and_in_two(tmp_path, run)
    assert parts.losses == pytest.approx(whole.losses, abs=1e-5)
    # A stop has no time for the validation that may be due at its step.
    evaluated = {step: loss for step, loss in whole.eval_losses.items() if step in parts.eval_losses}
    assert len(evaluated) >= len(whole.eval_losses) - 1
    assert parts.eval_losses == pytest.approx(evaluated, abs=1e-5)
    assert actual.metrics["tokens"] == expected.metrics["tokens"]
    before, after = (load_file(made.folder / "adapter_model.safetensors") for made in (expected, actual))
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, atol=1e-5, rtol=1e-4)


def test_a_stopped_pretraining_goes_on_exactly(tmp_path: Path, text: Path) -> None:
    params = {**SMALL, "max_steps": 12, "eval_steps": 3, "save_steps": 100}

    def run(workdir: Path, reports: Reports, more: Any) -> list[MadeOutput]:
        return pretrain.run(context(workdir, "pretrain", params, {"training_data": text}, reports, **more))

    expected, actual, whole, parts, checkpoint = whole_and_in_two(tmp_path, run)
    assert parts.losses == pytest.approx(whole.losses, abs=1e-5)
    assert len(report_of(actual)["loss_curve"]) == 12
    assert actual.metrics["train_loss_first"] == pytest.approx(expected.metrics["train_loss_first"])
    assert (checkpoint / FOLDER / "runs").is_dir()
    steps = [scalar.step for scalar in EventAccumulator(str(actual.folder / "runs")).Reload().Scalars("loss")]
    assert sorted(set(steps)) == list(range(1, 13)), "the curve goes on where it stopped"


def test_a_run_lost_after_its_last_step_is_not_trained_again(tmp_path: Path, base: Path, data: Path) -> None:
    """The checkpoint of the last step is whole, the outputs are not published yet."""
    first, second = Reports(), Reports()
    inputs = {"training_data": data, "model": base}
    (expected,) = sft.run(context(tmp_path / "a", "sft", {**SFT, "epochs": 0.5}, inputs, first))
    last = first.checkpoints[-1][1]
    (actual,) = sft.run(context(tmp_path / "b", "sft", {**SFT, "epochs": 0.5}, inputs, second, resume_from=last))
    assert not second.losses
    assert actual.metrics == expected.metrics
    before, after = (load_file(made.folder / "adapter_model.safetensors") for made in (expected, actual))
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_a_stop_during_validation_is_heard(tmp_path: Path, base: Path, data: Path) -> None:
    with pytest.raises(Stopped):
        sft.run(
            context(tmp_path, "sft", SFT, {"training_data": data, "model": base}, stopping=StopAfterCalls(40).stopping)
        )


class StopAfterCalls:
    """Asks for a stop once it was asked so often: while data is rendered, validated, or trained on."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def stopping(self) -> bool:
        self.left -= 1
        return self.left < 0


def test_checkpoints_are_kept_until_the_next_is_reported(tmp_path: Path, base: Path, data: Path) -> None:
    reports = Reports()
    finetune(tmp_path, base, data, reports, max_steps=4, save_steps=1, save_total_limit=1)
    assert [step for step, _ in reports.checkpoints] == [1, 2, 3, 4]
    assert reports.kept[1:] == [[f"checkpoint-{step}", f"checkpoint-{step + 1}"] for step in (1, 2, 3)]


def test_early_stopping_keeps_the_best(tmp_path: Path, base: Path, data: Path) -> None:
    """A learning rate that is far too high: validation grows worse after a step or so."""
    reports = Reports()
    odd = jsonl(tmp_path / "odd", [{"prompt": "Something else", "completion": " is asked here altogether."}] * 4)
    inputs = {"training_data": data, "model": base, "validation_data": odd}
    pairs = [{"prompt": f"What is {i}?", "completion": f" It is {i}."} for i in range(24)]
    inputs["training_data"] = jsonl(tmp_path / "pairs", pairs)
    params = {**SFT, "learning_rate": 0.1, "epochs": 40, "eval_steps": 1, "early_stopping_patience": 2}
    (made,) = sft.run(context(tmp_path / "work", "sft", params, inputs, reports))

    best = min((loss, step) for step, loss in reports.eval_losses.items() if step)
    report = report_of(made)
    assert any(line.startswith("early stopping at step") for line in reports.logs)
    assert (report["best_eval_loss"], report["best_step"]) == best
    assert max(reports.losses) == best[1] + 2
    last = load_file(reports.checkpoints[-1][1] / "adapter_model.safetensors")
    kept = load_file(made.folder / "adapter_model.safetensors")
    assert any(not torch.equal(kept[name], weight) for name, weight in last.items())


def test_a_loss_that_is_no_number_ends_the_job(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reports = Reports()
    params = {**SMALL, "max_steps": 50, "learning_rate": 10, "max_grad_norm": 1e30, "warmup_ratio": 0, "save_steps": 1}
    monkeypatch.setattr(Watch, "on_step_end", poisoned(Watch.on_step_end, step=3))
    with pytest.raises(RecipeError) as caught:
        pretrain.run(context(tmp_path, "pretrain", params, {"training_data": text}, reports))
    assert caught.value.reason is FailureReason.bad_params
    assert caught.value.message == "The loss became NaN at step 4"
    assert caught.value.hint == "Lower the learning rate (it is 10), for instance to 1."
    assert all(not math.isnan(loss) for loss in reports.losses.values())


def poisoned(original: Any, step: int) -> Any:
    """on_step_end that leaves a weight that is no number, as a diverged training does."""

    def on_step_end(self: Any, args: Any, state: Any, control: Any, model: Any = None, **more: Any) -> None:
        original(self, args, state, control, model=model, **more)
        if state.global_step == step:
            with torch.no_grad():
                next(iter(model.parameters()))[:] = math.nan

    return on_step_end


def test_out_of_memory_halves_the_batch_and_learns_the_same(tmp_path: Path, base: Path, data: Path) -> None:
    plain, tight = Reports(), Reports()
    params = {"max_steps": 4, "batch_size": 4, "packing": False, "save_steps": 2}
    finetune(tmp_path / "plain", base, data, plain, **params)
    with memory_for(rows=1):
        (made,) = finetune(tmp_path / "tight", base, data, tight, **params)
    assert (report_of(made)["batch_size"], report_of(made)["gradient_accumulation"]) == (1, 4)
    assert [line for line in tight.logs if line.startswith("batch size")] == [
        "batch size 4, as asked",
        "batch size 2: memory ran out with 4",
        "batch size 1: memory ran out with 2",
    ]
    assert tight.losses == pytest.approx(plain.losses, abs=1e-4)


def test_out_of_memory_with_one_row_says_what_to_try(tmp_path: Path, base: Path, data: Path) -> None:
    with memory_for(rows=0), pytest.raises(RecipeError) as caught:
        finetune(tmp_path, base, data, max_steps=1)
    assert caught.value.reason is FailureReason.out_of_memory
    assert caught.value.message.startswith("Memory ran out with a single row of ")
    assert "max_length" in caught.value.hint


@contextmanager
def memory_for(rows: int) -> Iterator[None]:
    """A machine whose memory holds so many rows in training."""

    def training_step(self: Any, model: Any, inputs: dict[str, Any], *more: Any) -> Any:
        if len(inputs["input_ids"]) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return original(self, model, inputs, *more)

    original = AnswerTrainer.training_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AnswerTrainer, "training_step", training_step)
        yield


def test_a_missing_or_forbidden_base_model_is_named(tmp_path: Path, base: Path, data: Path) -> None:
    inputs = {"training_data": data}

    def refusal(base_model: str | None, reason: FailureReason, **more: Any) -> str:
        params = {**SFT, **({"base_model": base_model} if base_model else {})}
        with pytest.raises(RecipeError) as caught:
            sft.run(context(tmp_path, "sft", params, inputs, **more))
        assert (caught.value.reason, caught.value.param) == (reason, "base_model")
        return caught.value.message

    missing, forbidden = FailureReason.input_missing, FailureReason.bad_params
    assert refusal(None, missing) == "No base model is given"
    assert refusal("/no/where", missing) == "base_model '/no/where' is no folder on this machine"
    assert "has no config.json" in refusal(str(data), missing)
    assert "not allowed here" in refusal(str(base), forbidden, allow_local_models=False)
    assert "not allowed here" in refusal("owner/name", forbidden, allow_hub=False)
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text("{}")
    assert "no safetensors weights" in refusal(str(tmp_path / "pickled"), FailureReason.unsafe_artifact)


def test_modules_that_are_not_there_are_refused(tmp_path: Path, base: Path, data: Path) -> None:
    with pytest.raises(RecipeError, match=r"lora_target_modules .* does not fit the base model") as caught:
        finetune(tmp_path, base, data, lora_target_modules=["nothing"])
    assert caught.value.param == "lora_target_modules"
