"""The demo from the first line to the last table."""

from __future__ import annotations

import time

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llmos.client import LLMOS
from llmos.demo.faq import read_faq
from llmos.demo.finetuning import CHAT, finetune
from llmos.demo.pretraining import pretrain
from llmos.demo.stage import Stage


def play(client: LLMOS, console: Console, where: str) -> list[tuple[str, str]]:
    """All three acts; returns the facts of the last table. Raises LLMOSError where one cannot be played."""
    begun = time.monotonic()
    read_faq()  # missing questions are said before the first act, not after ten minutes
    with client.openai() as openai:
        stage = Stage(client, openai, console)
        finetune(stage, fallback=pretrain(stage))
        stage.act("Act 3 · What ran")
        stage.note("time", f"{(time.monotonic() - begun) / 60:.1f} minutes")
        stage.note("everything lies in", where)
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(style="bold")
        table.add_column()
        for name, value in stage.facts:
            table.add_row(name, value)
        console.print(table)
        return stage.facts


def what_next(console: Console, kept: bool) -> None:
    """What a person may want to type now."""
    console.print("\nTry next" + ("" if kept else " (after `llmos up`)"), style="bold")
    for command, meaning in (
        ("llmos status", "what runs"),
        (f'llmos chat {CHAT} "What is LLM OS?"', "the base model"),
        ("llmos models list", "what is registered"),
        ("llmos jobs list", "what was trained"),
        ("llmos --help", "everything else"),
    ):
        console.print(f"  {command:<42}", Text(meaning, "dim"))
