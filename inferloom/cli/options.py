"""Options and arguments that several commands take, in the same words."""

from __future__ import annotations

from typing import Annotated

import typer

DEFAULT_URL = "http://127.0.0.1:8080"

Url = Annotated[
    str | None,
    typer.Option("--url", help=f"Address of the server.  [default: INFERLOOM_URL, else {DEFAULT_URL}]"),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DeclaredModel = Annotated[str, typer.Argument(metavar="MODEL", help="Id or alias of a declared model.")]
Model = Annotated[
    str | None,
    typer.Option("-m", "--model", help="Id or alias of a model, or a source.  [default: the default model]"),
]
SystemPrompt = Annotated[
    str | None, typer.Option("--system", help="System prompt, instead of the model's own.")
]
