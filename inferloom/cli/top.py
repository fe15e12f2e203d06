"""`inferloom top`: the models of the running server as a table that keeps itself up to date."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from inferloom.cli.listing import human_bytes, in_a_line, remaining
from inferloom.cli.models import server
from inferloom.cli.options import Json, Url
from inferloom.cli.printing import print_json, rows_of
from inferloom.cli.readings import Line, Readings, readings

if TYPE_CHECKING:
    from rich.table import Table

_TITLES = ("MODEL", "STATE", "MEMORY", "RESERVED", "TOK/S", "RUNNING", "QUEUE", "EXPIRES", "WHY")
_RIGHT = ("MEMORY", "RESERVED", "TOK/S", "RUNNING", "QUEUE")
_COLOURS = {"ready": "green", "failed": "red", "loading": "yellow", "warming": "yellow", "draining": "yellow"}
_BETWEEN = 0.5  # seconds between the two readings of a rate that is printed once


def top(
    once: Annotated[bool, typer.Option("--once", help="Print one table and exit.")] = False,
    interval: Annotated[
        float, typer.Option("--interval", min=0.1, max=3600.0, help="Seconds between readings.")
    ] = 1.0,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Watch the models of the running server: state, memory, tokens a second, queue, expiry and why. Ctrl-C ends it.

    What happens to a model shows at once. Where the output is not a terminal, one table is printed. With --json each
    reading is one line.
    """
    session = server(url)
    if once or not (as_json or sys.stdout.isatty()):
        reader = Readings(session)
        reader.take()
        time.sleep(_BETWEEN)
        shown = reader.take()
        if as_json:
            print_json(shown)
        else:
            texts = [[text or "-" for text in cells(line)] for line in shown]  # every line has every column
            print(rows_of(_TITLES, texts, right=_RIGHT))
        return
    try:
        if as_json:
            _stream(readings(session, seconds=interval))
        else:
            _live(readings(session, seconds=interval))
    except KeyboardInterrupt:
        return  # how one leaves it


def cells(line: Line) -> tuple[str, ...]:
    """A line of the table as text."""
    how_far = f"{line.fraction:.0%}" if line.fraction is not None else ""
    rate = line.tokens_per_second
    return (
        f"{line.id} *" if line.default else line.id,
        " ".join(part for part in (line.state, line.stage, how_far) if part),
        human_bytes(line.memory),
        human_bytes(line.reserved),
        f"{rate:,.0f}" if rate is not None and line.state == "ready" else "",
        str(line.running or ""),
        str(line.waiting or ""),
        remaining(line.expires_at - time.time()) if line.expires_at is not None else "",
        "; ".join(part for part in ("pinned" if line.pinned else "", in_a_line(line.why)) if part),
    )


def _stream(found: Iterable[list[Line] | None]) -> None:
    for shown in found:
        print(msgspec.json.encode(shown).decode(), flush=True)


def _live(found: Iterable[list[Line] | None]) -> None:
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(), screen=True, auto_refresh=False) as live:
        last: list[Line] = []
        for shown in found:
            last = last if shown is None else shown
            live.update(drawn(last, lost=shown is None), refresh=True)


def _workers(shown: Sequence[Line]) -> list[Line]:
    """One line of each worker: models may share one."""
    counted: set[str] = set()
    found = []
    for line in shown:
        if line.id not in counted:
            found.append(line)
        counted.update(line.shares)
    return found


def drawn(shown: Sequence[Line], *, lost: bool = False) -> Table:
    """The table for the terminal; `lost` says that it is old."""
    from rich.table import Table
    from rich.text import Text

    total = sum(line.memory for line in _workers(shown))
    rate = sum(line.tokens_per_second or 0.0 for line in shown)
    ready = sum(line.state == "ready" for line in shown)
    caption = f"{ready} of {len(shown)} ready, {human_bytes(total) or '0B'}, {rate:,.0f} tokens/s"
    table = Table(
        title="the server does not answer: this is how it was" if lost else None,
        caption=caption,
        caption_justify="left",
        expand=True,
        box=None,
        header_style="bold",
        style="dim" if lost else "",
    )
    for title in _TITLES:
        table.add_column(title, justify="right" if title in _RIGHT else "left", no_wrap=title != "WHY")
    for line in shown:
        texts = [Text(text) for text in cells(line)]  # names and reasons are text, not markup
        texts[1].stylize(_COLOURS.get(line.state, "dim"))
        table.add_row(*texts)
    return table
