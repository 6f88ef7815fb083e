"""Act one: a language model from nothing but text."""

from __future__ import annotations

from llmos.demo.corpus import stdlib_text
from llmos.demo.stage import Stage, ref_of

PROMPT = "The with statement is used to"

# Sized for two AVX2 cores: about two million parameters and a minute and a half.
PARAMS = {
    "vocab_size": 2048,
    "context_length": 256,
    "hidden_size": 192,
    "layers": 4,
    "heads": 6,
    "learning_rate": 3e-3,
    "epochs": 1,
    "warmup_ratio": 0.05,
    "weight_decay": 0.1,
}


def pretrain(stage: Stage) -> str:
    """Train, serve, complete a sentence. Returns the model's ref; it is not served any more afterwards."""
    stage.act("Act 1 · Pretrain a language model from scratch")
    text = stdlib_text().encode()
    stage.say(f"The corpus: {len(text) / 1e6:.1f} MB of documentation that ships with Python.")
    file_id = stage.upload("python-docs.txt", text)
    job = stage.client.submit_job(
        "pretrain", name="demo", inputs={"training_data": file_id}, params=PARAMS, output="demo-pretrained"
    )
    job = stage.finish(job["id"], "pretrain")
    metrics, ref = job["metrics"], ref_of(job)
    stage.note("pretrained", ref)
    stage.note("  loss", f"{metrics['train_loss_first']:.2f} → {metrics['train_loss']:.2f}")
    stage.note("  training speed", f"{metrics['tokens_per_second']:,.0f} tokens/s")
    stage.serve(ref, "demo-pretrained")
    complete(stage, "demo-pretrained")
    stage.client.undeploy("demo-pretrained")
    return ref


def complete(stage: Stage, model: str) -> None:
    """Stream the continuation of a sentence."""
    stage.console.print(PROMPT, end="", style="bold")
    stream = stage.openai.completions.create(
        model=model, prompt=PROMPT, max_tokens=40, temperature=0.7, seed=0, stream=True
    )
    for chunk in stream:
        stage.console.print(chunk.choices[0].text, end="")
    stage.console.print()
