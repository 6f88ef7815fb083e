"""The command tree."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmos.cli import admin, chat, demo, deployments, files, jobs, models, power, system
from llmos.cli.session import Session
from llmos.embedded.layout import default_home

app = typer.Typer(
    help="LLM OS: train, register, deploy and serve language models on your own machines.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong use, 3 no such thing, 4 nothing answers, 5 not in this state, "
    "130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def root(
    context: typer.Context,
    url: Annotated[str | None, typer.Option(help="The gateway (default: LLMOS_URL, else what runs on HOME).")] = None,
    key: Annotated[str | None, typer.Option(help="API key (default: LLMOS_API_KEY, else HOME/key).")] = None,
    home: Annotated[
        Path | None, typer.Option(help="Folder of the embedded system (default: LLMOS_HOME, else ~/.llmos).")
    ] = None,
) -> None:
    context.obj = Session(url, key, home.expanduser().absolute() if home else default_home())


power.register(app)
system.register(app)
demo.register(app)
app.add_typer(jobs.app, name="jobs")
app.add_typer(models.app, name="models")
app.add_typer(files.app, name="files")
app.add_typer(admin.app, name="admin")
deployments.register(app)
chat.register(app)
