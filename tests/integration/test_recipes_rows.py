"""Which tokens are learnt, and that packed samples do not see each other: proved on real tokenizers and models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.integration.tiny_models import SMOLLM2, TOPICS, chat, chats, tiny_model, tiny_tokenizer

import torch  # isort: skip  # the module before sets the environment that torch reads
from transformers import AutoModelForCausalLM

from services.trainer.recipes.answer_trainer import isolates
from services.trainer.recipes.api import RecipeError
from services.trainer.recipes.chat_data import Sample, parse
from services.trainer.recipes.chat_rendering import CHATML, IGNORED, Rendered, Renderer
from services.trainer.recipes.jsonl import Line
from services.trainer.recipes.rows import Collator, Counts, pack, write_rows

pytestmark = pytest.mark.slow

CHANGING = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' and not loop.last %}{{ message['content'].split('=')[-1] }}"
    "{% else %}{{ message['content'] }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""As templates that drop the reasoning of earlier turns: a longer chat does not begin as a shorter one."""


def sample(value: dict[str, Any]) -> Sample:
    return parse(Line("train.jsonl", 1, value, "training_data"))


def learnt(tokenizer: Any, rendered: Rendered) -> list[str]:
    """The runs of learnt tokens, as text."""
    runs: list[list[int]] = [[]]
    for token, label in zip(rendered.input_ids, rendered.labels, strict=True):
        if label == IGNORED:
            runs.append([])
        else:
            assert label == token
            runs[-1].append(token)
    return [tokenizer.decode(run) for run in runs if run]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


TURNS = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 2+2? 🧮"},
        {"role": "assistant", "content": "Four, naïve one. 🎉"},
        {"role": "user", "content": "And 3+3?"},
        {"role": "assistant", "content": "Six.", "weight": 0},
        {"role": "user", "content": "assistant\nAnd 4+4?"},
        {"role": "assistant", "content": " Eight=8.\n\nDone"},
    ]
}


@pytest.mark.parametrize("template", [CHATML, SMOLLM2], ids=["chatml", "smollm2"])
def test_exactly_the_answers_and_their_ends_are_learnt(tokenizer: Any, template: str) -> None:
    tokenizer.chat_template = template
    (rendered,) = Renderer(tokenizer, 1000).render(sample(TURNS))
    end = "<|endoftext|>" if template == CHATML else "<|im_end|>"
    assert learnt(tokenizer, rendered) == ["Four, naïve one. 🎉" + end, " Eight=8.\n\nDone" + end]
    whole = tokenizer.apply_chat_template(TURNS["messages"], tokenize=False)
    assert tokenizer.decode(rendered.input_ids) == whole


def test_a_template_that_changes_earlier_turns_makes_a_sample_of_each_answer(tokenizer: Any) -> None:
    tokenizer.chat_template = CHANGING
    value = {"messages": [*chat("Q", "think=A")["messages"], *chat("R", "think=B")["messages"]]}
    rendered = list(Renderer(tokenizer, 1000).render(sample(value)))
    assert [learnt(tokenizer, one) for one in rendered] == [["think=A<|im_end|>"], ["think=B<|im_end|>"]]
    assert "<|im_start|>assistant\nA<|im_end|>" in tokenizer.decode(rendered[1].input_ids)


def test_of_a_pair_the_completion_and_an_end_are_learnt(tokenizer: Any) -> None:
    (rendered,) = Renderer(tokenizer, 1000).render(sample({"prompt": "The sky is", "completion": " blue"}))
    assert learnt(tokenizer, rendered) == [" blue<|endoftext|>"]


def test_on_request_the_prompt_is_learnt_too(tokenizer: Any) -> None:
    tokenizer.chat_template = CHATML
    (rendered,) = Renderer(tokenizer, 1000, train_on_prompt=True).render(sample(chat("Q", "A")))
    assert rendered.labels == rendered.input_ids


def test_what_a_template_refuses_is_named_by_line(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ raise_exception('no system role here') }}"
    with pytest.raises(RecipeError, match=r"train\.jsonl, line 1: .*template does not take this chat: no system role"):
        list(Renderer(tokenizer, 1000).render(sample(chat("Q", "A"))))


def test_a_sample_whose_answer_is_cut_off_is_dropped_and_counted(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.chat_template = CHATML
    renderer, counts = Renderer(tokenizer, 20), Counts()
    both = [sample(chat("What is it? " * 20, "A")), sample(chat("Q", "A long answer. " * 20))]
    rows = write_rows((one for each in both for one in renderer.render(each)), tmp_path / "rows.arrow", counts)
    assert (len(rows), counts.samples, counts.dropped, counts.cut, counts.tokens) == (1, 1, 1, 2, 20)


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tiny_model(tmp_path_factory.mktemp("model"))
    return AutoModelForCausalLM.from_pretrained(folder, dtype="float32", attn_implementation=request.param).eval()


def test_packed_samples_do_not_see_each_other(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    """Logits of every sample in packed and padded batches equal those of the sample alone."""
    tokenizer.chat_template = CHATML
    renderer, counts = Renderer(tokenizer, 256), Counts()
    rendered = [one for value in chats(20) for one in renderer.render(sample(value))]
    rows = write_rows(iter(rendered), tmp_path / "rows.arrow", counts)
    packed = pack(rows, counts, 256)
    assert len(packed) < len(rows) / 3
    assert any(len(row["seq_lengths"]) > 2 for row in packed)

    batch = Collator(pad_token_id=0)(list(packed))
    assert batch.pop("real_tokens") == counts.tokens
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    alone = {tuple(one.input_ids): one for one in rendered}
    for number, row in enumerate(packed):
        start = 0
        for length in row["seq_lengths"]:
            one = alone.pop(tuple(row["input_ids"][start : start + length]))
            with torch.no_grad():
                expected = model(input_ids=torch.tensor([one.input_ids]), use_cache=False).logits[0]
            torch.testing.assert_close(logits[number, start : start + length], expected, atol=1e-5, rtol=1e-4)
            # The first token of a sample has nothing in front of it; all others keep their labels.
            assert batch["labels"][number, start] == IGNORED
            assert batch["labels"][number, start + 1 : start + length].tolist() == one.labels[1:]
            start += length
        assert (batch["labels"][number, start:] == IGNORED).all()
    assert not alone


def test_a_model_that_would_let_them_see_each_other_is_known(model: Any) -> None:
    assert isolates(model)

    class Leaky(torch.nn.Module):
        """Ignores positions, as an architecture does that carries a state along the row."""

        config, device = model.config, model.device

        def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, use_cache: bool) -> Any:
            del position_ids
            return model(input_ids=input_ids, use_cache=use_cache)

    assert not isolates(Leaky())


def test_rows_are_as_short_as_packing_allows(tokenizer: Any, tmp_path: Path) -> None:
    """Longer rows would only make attention dearer."""
    ids = tokenizer("\n".join(TOPICS.values())[:3000])["input_ids"]
    counts = Counts()
    rows = write_rows((Rendered(ids[:30], ids[:30], cut=False) for _ in range(64)), tmp_path / "rows.arrow", counts)
    packed = pack(rows, counts, 4096)
    assert max(sum(lengths) for lengths in packed["seq_lengths"]) <= 512
    assert sum(map(len, packed["input_ids"])) == counts.tokens
