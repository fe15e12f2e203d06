"""`inferloom models`, and the verbs that change what a running server holds: load, unload, reload, pin, plan."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import typer

from inferloom.cli.listing import LIST_COLUMNS, declared, human_bytes, table
from inferloom.cli.options import DEFAULT_URL, DeclaredModel, Json, Url
from inferloom.cli.printing import print_json
from inferloom.cli.session import Session, connect, row_of
from inferloom.cli.transport import NoServer
from inferloom.cli.waiting import load_shown

_KINDS = {"weights": "weights", "kv": "KV", "workspace": "workspace"}


def models(url: Url = None, as_json: Json = False) -> None:
    """List the models of the running server, or of your configuration where no server answers.

    The default model is marked with a star.
    """
    session = connect(url)
    if session is not None:
        cards = session.cards()
        rows = [row_of(card) for card in cards]
    else:
        from inferloom.cli.standalone import configured

        config = configured()
        print(f"no server answers at {DEFAULT_URL}: this is what the configuration declares", file=sys.stderr)
        rows = [declared(model, config) for model in config.model]
        cards = []
    if as_json:
        print_json(cards or rows)
    else:
        print(table(rows, LIST_COLUMNS))


def load(model: DeclaredModel, url: Url = None, as_json: Json = False) -> None:
    """Load a model of the running server and wait until it is ready."""
    _change("load", model, url, as_json)


def unload(
    model: DeclaredModel,
    force: Annotated[
        bool, typer.Option("--force", help="End the answers in progress, and a load in progress.")
    ] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Unload a model of the running server; the next request loads it again."""
    _change("unload", model, url, as_json, **({"force": True} if force else {}))


def reload(model: DeclaredModel, url: Url = None, as_json: Json = False) -> None:
    """Load a model of the running server again and wait until it is ready.

    A loaded model is replaced if its files have changed, and left as it is if not; its requests go on meanwhile.
    """
    _change("reload", model, url, as_json)


def pin(
    model: DeclaredModel,
    off: Annotated[bool, typer.Option("--off", help="Let it go again.")] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Keep a model of the running server in memory: others do not push it out."""
    answer = server(url).lifecycle("pin", model, pin=not off)
    if as_json:
        print_json(answer)
    else:
        print(f"{answer.get('model_id', model)}: {'no longer pinned' if off else 'pinned'}")


def plan(model: DeclaredModel, url: Url = None, as_json: Json = False) -> None:
    """Say what loading a model would take, and whom it would push out. Nothing is changed.

    The exit status is 1 where it does not fit.
    """
    answer = server(url).lifecycle("plan", model)
    if as_json:
        print_json(answer)
    else:
        print(_planned(answer, model))
    if answer.get("fits") is False:
        raise typer.Exit(1)


def _planned(answer: dict[str, Any], model: str) -> str:
    """The plan in sentences. `fits` is null where the model's files are not on the server's machine."""
    name = answer.get("model_id", model)
    if answer.get("loaded"):
        return f"{name} is loaded"
    lines = []
    kinds = answer.get("bytes") or {}
    parts = [(int(kinds.get(kind) or 0), kind) for kind in ("weights", "kv", "workspace")]
    if need := sum(count for count, _ in parts):
        named = ", ".join(f"{human_bytes(count)} {_KINDS[kind]}" for count, kind in parts if count)
        free = human_bytes(int(answer.get("free_bytes") or 0)) or "0B"
        lines.append(f"{name} needs {human_bytes(need)} ({named}); {free} are free")
    reason = answer.get("reason")
    if answer.get("fits") is None:
        lines.append(
            reason or f"what {name} takes is known when its files are there: `inferloom pull` fetches them"
        )
    elif not answer["fits"]:
        lines.append(f"it does not fit: {reason or 'the server says no more'}")
    else:
        goes = [(one["model_id"], int(one.get("bytes") or 0)) for one in answer.get("evicts") or ()]
        named = ", ".join(f"{victim} ({human_bytes(held) or '0B'})" for victim, held in goes)
        lines.append(f"loading it evicts {named or 'nothing'}")
        if answer.get("expected_secs") is not None:
            lines[-1] += f" and takes about {float(answer['expected_secs']):.2f} s"
        if answer.get("waits"):
            lines.append("it waits for others that load, leave or have requests")
        if reason:
            lines.append(str(reason))
    return "\n".join(lines)


def _change(verb: str, model: str, url: str | None, as_json: bool, **fields: Any) -> None:
    began = time.monotonic()
    session = server(url)
    try:
        with load_shown(session, model):
            answer = session.lifecycle(verb, model, **fields)
    except KeyboardInterrupt:
        if verb != "unload":
            print(f"interrupted: the load is stopped unless others wait for {model} too", file=sys.stderr)
        raise
    if as_json:
        print_json(answer)
        return
    freed = int(answer.get("freed_bytes") or 0)
    more = f", {human_bytes(freed)} are free again" if freed else ""
    seconds = time.monotonic() - began
    print(f"{answer.get('model_id', model)}: {answer.get('status')} ({seconds:.2f} s){more}")


def server(url: str | None) -> Session:
    """The running server. Raises `NoServer` where there is none."""
    session = connect(url)
    if session is None:
        raise NoServer(
            f"no server answers at {DEFAULT_URL}: start one with `inferloom serve`, or name it with --url"
        )
    return session
