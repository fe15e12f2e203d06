"""Rows and JSON on standard output."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec


def rows_of(titles: Sequence[str], rows: Sequence[Sequence[str]], *, right: Collection[str] = ()) -> str:
    """Rows under their titles, columns wide enough for their longest text; those named in `right` end at one line,
    columns without any text are left out."""
    shown = [index for index in range(len(titles)) if any(row[index] for row in rows) or not rows]
    widths = [max(len(line[index]) for line in (titles, *rows)) for index in shown]
    lines = []
    for line in (titles, *rows):
        cells = [
            line[index].rjust(width) if titles[index] in right else line[index].ljust(width)
            for index, width in zip(shown, widths, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def print_json(value: object) -> None:
    print(msgspec.json.format(msgspec.json.encode(value)).decode())
