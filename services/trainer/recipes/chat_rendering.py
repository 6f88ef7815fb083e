"""From a sample to token ids and labels: which tokens count in the loss.

Most chat templates do not mark the assistant's part (`{% generation %}`), so the answers are found by rendering the
chat once more up to each of them: what an answer adds to the text is what is learnt, its end-of-turn token among it, so
that the model learns to stop.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from services.trainer.recipes.chat_data import Chat, Pair, Sample

IGNORED = -100

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The template for a base model that has none: ChatML, with turns that end in the token that generation stops at."""

Span = tuple[int, int]


@dataclass(frozen=True)
class Rendered:
    """A sample ready to train on. `labels[i]` is `input_ids[i]` where token i is learnt, else IGNORED."""

    input_ids: list[int]
    labels: list[int]
    cut: bool
    """Whether it was longer than `max_length`."""

    @property
    def trained(self) -> bool:
        """Whether any token is learnt. The first has nothing in front of it to be predicted from."""
        return any(label != IGNORED for label in self.labels[1:])


class Renderer:
    """Renders samples with one tokenizer (transformers' `PreTrainedTokenizerBase`, a fast one)."""

    def __init__(self, tokenizer: Any, max_length: int, train_on_prompt: bool = False) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.train_on_prompt = train_on_prompt

    def render(self, sample: Sample) -> Iterator[Rendered]:
        """One `Rendered`, or one per answer where the template renders a growing chat differently each time.

        Raises RecipeError, naming the line, where the template refuses the chat.
        """
        if isinstance(sample, Pair):
            yield self._pair(sample)
            return
        text = self._template(sample, sample.messages)
        spans = self._spans(sample, text)
        if spans is not None:
            yield self._tokens(text, spans)
            return
        for turn, trained in enumerate(sample.trained):
            if trained:
                yield self._one_answer(sample, turn)

    def _spans(self, chat: Chat, text: str) -> list[Span] | None:
        """Where the learnt answers stand in `text`; None where a shorter chat is not how a longer one begins."""
        spans = []
        for turn, trained in enumerate(chat.trained):
            if not trained:
                continue
            before = self._template(chat, chat.messages[:turn], prompt=True)
            after = self._template(chat, chat.messages[: turn + 1])
            if not (text.startswith(after) and after.startswith(before)):
                return None
            spans.append(_answer(before, after))
        return spans

    def _one_answer(self, chat: Chat, turn: int) -> Rendered:
        before = self._template(chat, chat.messages[:turn], prompt=True)
        after = self._template(chat, chat.messages[: turn + 1])
        return self._tokens(after, [_answer(_common(before, after), after)])

    def _pair(self, pair: Pair) -> Rendered:
        text = pair.prompt + pair.completion
        return self._tokens(text, [(len(pair.prompt), len(text))], special_tokens=True)

    def _template(self, chat: Chat, messages: list[dict[str, str]], prompt: bool = False) -> str:
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        except Exception as error:  # a template is a program: it may raise whatever it likes
            raise chat.line.refuse(f"the base model's chat template does not take this chat: {error}") from error
        return str(text)

    def _tokens(self, text: str, spans: list[Span], special_tokens: bool = False) -> Rendered:
        """`special_tokens`: raw text gets the tokenizer's own first token and an end; a template writes them itself."""
        encoded = self.tokenizer(text, add_special_tokens=special_tokens, return_offsets_mapping=True, verbose=False)
        ids: list[int] = list(encoded["input_ids"])
        trained = [self.train_on_prompt or _overlaps(where, spans) for where in encoded["offset_mapping"]]
        end = self.tokenizer.eos_token_id
        if special_tokens and end is not None:
            ids, trained = (ids, trained[:-1]) if ids[-1:] == [end] else ([*ids, end], trained)
            trained = [*trained, True]
        labels = [token if learnt else IGNORED for token, learnt in zip(ids, trained, strict=True)]
        return Rendered(ids[: self.max_length], labels[: self.max_length], cut=len(ids) > self.max_length)


def _answer(before: str, after: str) -> Span:
    """The answer's span, without the white space that a template puts behind its end-of-turn token."""
    return len(before), max(len(before) + 1, len(after.rstrip()))


def _common(one: str, other: str) -> str:
    """The text that both begin with."""
    length = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:length]


def _overlaps(token: Span, spans: list[Span]) -> bool:
    start, end = token
    return any(start < right and left < end for left, right in spans)
