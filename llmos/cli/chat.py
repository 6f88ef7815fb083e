"""`llmos chat`: talk to a served model."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmos.cli.openai_errors import sentence_of
from llmos.cli.output import AsJson, console, print_json, say, say_error
from llmos.cli.session import session_of

if TYPE_CHECKING:
    import openai
    from openai.types.chat import ChatCompletionChunk


def register(app: typer.Typer) -> None:
    app.command()(chat)


def chat(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="What to talk to: a deployment, a model or an adapter.")],
    message: Annotated[str | None, typer.Argument(help="Say this, print the answer, and end.")] = None,
    system: Annotated[str | None, typer.Option(help="A system message to begin with.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2)] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer, in tokens.")] = None,
    as_json: AsJson = False,
) -> None:
    """Chat with a model, streaming. Ctrl-D or /quit ends; /new starts afresh."""
    opening: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
    options = {"temperature": temperature, "max_completion_tokens": max_tokens}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
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


def _converse(api: openai.OpenAI, model: str, opening: list[dict[str, str]], options: dict[str, Any]) -> None:
    import openai  # a second of start-up that other commands do not need

    messages = list(opening)
    say(f"{model} · /new starts afresh, /quit or Ctrl-D ends", style="dim")
    while True:
        try:
            text = console.input("[bold]› [/bold]").strip()
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
    parts: list[str] = []
    stream: openai.Stream[ChatCompletionChunk] = api.chat.completions.create(
        model=model, messages=messages, stream=True, **options
    )
    for chunk in stream:
        piece = chunk.choices[0].delta.content if chunk.choices else None
        if piece:
            parts.append(piece)
            sys.stdout.write(piece)
            sys.stdout.flush()
    sys.stdout.write("\n")
    return "".join(parts)
