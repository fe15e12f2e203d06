"""`inferloom models`, and the verbs that change what a running server holds: load, unload, reload."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer

from inferloom.cli.listing import LIST_COLUMNS, declared, table
from inferloom.cli.session import DEFAULT_URL, Session, connect
from inferloom.cli.transport import NoServer

Url = Annotated[
    str | None,
    typer.Option("--url", help=f"Address of the server.  [default: INFERLOOM_URL, else {DEFAULT_URL}]"),
]
Name = Annotated[str, typer.Argument(metavar="MODEL", help="Id or alias of a declared model.")]


def models(url: Url = None) -> None:
    """List the models of the running server, or of your configuration where no server answers.

    The default model is marked with a star.
    """
    session = connect(url)
    if session is not None:
        rows = session.models()
    else:
        from inferloom.cli.standalone import configured

        config = configured()
        print(f"no server answers at {DEFAULT_URL}: this is what the configuration declares", file=sys.stderr)
        rows = [declared(model, config) for model in config.model]
    print(table(rows, LIST_COLUMNS))


def load(model: Name, url: Url = None) -> None:
    """Load a model of the running server and wait until it is ready."""
    _change("load", model, url)


def unload(model: Name, url: Url = None) -> None:
    """Unload a model of the running server; the next request loads it again."""
    _change("unload", model, url)


def reload(model: Name, url: Url = None) -> None:
    """Load an unloaded model of the running server again and wait until it is ready."""
    _change("reload", model, url)


def _change(verb: str, model: str, url: str | None) -> None:
    began = time.monotonic()
    answer = _server(url).lifecycle(verb, model)
    print(f"{answer.get('model_id', model)}: {answer.get('status')} ({time.monotonic() - began:.2f} s)")


def _server(url: str | None) -> Session:
    session = connect(url)
    if session is None:
        raise NoServer(
            f"no server answers at {DEFAULT_URL}: start one with `inferloom serve`, or name it with --url"
        )
    return session
