"""`llmos chat` and `llmos complete`: talk to a served model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmos.cli.openai_errors import sentence_of
from llmos.cli.output import AsJson, console, print_json, say, say_error, say_text
from llmos.cli.session import session_of

if TYPE_CHECKING:
    import openai

Model = Annotated[str, typer.Argument(help="What to talk to: a deployment, a model or an adapter.")]
Temperature = Annotated[float | None, typer.Option(min=0, max=2, help="0 always takes the likeliest word.")]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Longest answer, in tokens.")]


def register(app: typer.Typer) -> None:
    for command in (chat, complete):
        app.command()(command)


def chat(
    context: typer.Context,
    model: Model,
    message: Annotated[str | None, typer.Argument(help="Say this, print the answer, and end.")] = None,
    system: Annotated[str | None, typer.Option(help="A system message to begin with.")] = None,
    temperature: Temperature = None,
    max_tokens: MaxTokens = None,
    as_json: AsJson = False,
) -> None:
    """Chat with a model, streaming. Ctrl-D or /quit ends; /new starts afresh."""
    opening: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
    given = _given(temperature=temperature, max_completion_tokens=max_tokens)
    with session_of(context).client() as client, client.openai() as api:
        if message is not None:
            messages: Any = [*opening, {"role": "user", "content": message}]
            if as_json:
                answer = api.chat.completions.create(model=model, messages=messages, **given)
                print_json(answer.model_dump())
            else:
                ask(api, model, messages, given)
            return
        _converse(api, model, opening, given)


def complete(
    context: typer.Context,
    model: Model,
    text: Annotated[str, typer.Argument(help="The text to go on with.")],
    temperature: Temperature = None,
    max_tokens: MaxTokens = None,
    as_json: AsJson = False,
) -> None:
    """Let a model go on with a text, streaming: also one that was not made for chat."""
    given = _given(temperature=temperature, max_tokens=max_tokens)
    with session_of(context).client() as client, client.openai() as api:
        if as_json:
            print_json(api.completions.create(model=model, prompt=text, **given).model_dump())
            return
        stream = api.completions.create(model=model, prompt=text, stream=True, **given)
        _print_pieces(chunk.choices[0].text for chunk in stream if chunk.choices)


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _converse(api: openai.OpenAI, model: str, opening: list[dict[str, str]], options: dict[str, Any]) -> None:
    import openai  # a second of start-up that other commands do not need

    messages = list(opening)
    say(f"{model} · /new starts afresh, /quit or Ctrl-D ends", style="dim")
    while True:
        try:
            text = console.input("[bold]› [/bold]", markup=True).strip()
        except EOFError:
            return
        if text == "/quit":
            return
        if text == "/new":
            messages = list(opening)
        elif text:
            try:
                answer = ask(api, model, [*messages, {"role": "user", "content": text}], options)
            except openai.OpenAIError as error:
                found = sentence_of(error)
                say_error(found[0] if found else str(error))
                continue
            messages += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]


def ask(api: openai.OpenAI, model: str, messages: Any, options: dict[str, Any]) -> str:
    """Ask and print the answer as it comes; returns it whole."""
    stream = api.chat.completions.create(model=model, messages=messages, stream=True, **options)
    return _print_pieces(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def _print_pieces(pieces: Iterator[str]) -> str:
    """The pieces as they come, and a line's end; returns them as one."""
    parts = []
    for piece in pieces:
        parts.append(piece)
        say_text(piece)
    say_text("\n")
    return "".join(parts)
