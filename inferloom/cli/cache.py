"""`inferloom cache`: what lies in the cache, how large it is, when it was last used, and how to be rid of it."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from inferloom.config.home import cache_dir, cache_limit
from inferloom.errors import Conflict, NotFound
from inferloom.formats import entries
from inferloom.formats.entries import Entry

app = typer.Typer(
    name="cache",
    help="List and clear the cache of downloaded, converted and packed weights.",
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode=None,
)

_WHAT = {"gguf": "converted", "packed": "packed", entries.DOWNLOADS: "downloaded"}


@app.callback()
def cache(context: typer.Context) -> None:
    """List what is in the cache, the longest unused last. Without a command, this is all that is done."""
    if context.invoked_subcommand is None:
        print(listing(time.time()))


@app.command()
def path() -> None:
    """Print the folder of the cache."""
    print(cache_dir())


@app.command()
def clear(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="A name or key of the listing; all of that name are removed."),
    ] = None,
    downloads: Annotated[
        bool, typer.Option("--downloads", help="Also remove what was downloaded, and would be fetched again.")
    ] = False,
) -> None:
    """Remove NAME, or everything that was converted and packed. What a model is being served from stays."""
    found = entries.entries() + entries.downloads()
    if name is not None:
        found = [entry for entry in found if name == entry.name or entry.key.startswith(name)]
        if not found:
            raise NotFound(f"the cache holds nothing called {name!r}; `inferloom cache` says what it holds.")
    elif not downloads:
        found = [entry for entry in found if entry.kind != entries.DOWNLOADS]
    gone = [entry for entry in found if entries.remove(entry)]
    freed = sum(entry.bytes for entry in gone) + entries.remove_leftovers()
    kept = [entry.name for entry in found if entry not in gone]
    if name is not None and not gone:
        raise Conflict(f"{name} is in use by a model that is loaded; unload it first.")
    print(
        f"removed {len(gone)} of {len(found)}, {_size(freed)}"
        + (f"; in use: {', '.join(kept)}" if kept else "")
    )


def listing(now: float) -> str:
    """The table of entries and their sum."""
    found = sorted(entries.entries() + entries.downloads(), key=lambda entry: -entry.last_use)
    rows = [("NAME", "WHAT", "SIZE", "LAST USED", "KEY")]
    rows += [
        (entry.name, _what(entry), _size(entry.bytes), ago(now - entry.last_use), _key(entry))
        for entry in found
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    made = sum(entry.bytes for entry in found if entry.kind != entries.DOWNLOADS)
    total = sum(entry.bytes for entry in found)
    lines.append(
        f"{_size(total)} in {cache_dir()}; {_size(made)} of {_size(cache_limit())} for converted and packed weights"
    )
    return "\n".join(lines)


def _what(entry: Entry) -> str:
    what = " ".join(part for part in (_WHAT[entry.kind], entry.scheme) if part)
    return f"{what}, in use" if entry.in_use else what


def _key(entry: Entry) -> str:
    return "" if entry.key == entry.name else entry.key[:12]


def _size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def ago(seconds: float) -> str:
    for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        count = int(seconds // length)
        if count:
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"
