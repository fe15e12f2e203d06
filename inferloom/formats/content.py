"""What a file holds, as a key: the SHA-256 of its content, hashed once.

Hashing takes half a second per gigabyte, so a file's digest is noted with its size, mtime and inode. The hub's own cache
names its large blobs by their SHA-256: a link to one needs no hashing at all.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from inferloom.config.home import cache_dir
from inferloom.types import LoadProgress

Progress = Callable[[LoadProgress], None]

_PIECE = 1 << 22
_BLOB = re.compile(r"[0-9a-f]{64}")


class _Note(msgspec.Struct, frozen=True):
    """Valid while the file's size, mtime and inode stay the same."""

    path: str
    size: int
    mtime_ns: int
    inode: int
    sha256: str


def known(files: Sequence[Path]) -> str | None:
    """The digest of `files` together if all were hashed before and none has changed since; reads a few small files."""
    digests = [_known(file) for file in files]
    whole = [digest for digest in digests if digest is not None]
    return _together(whole) if len(whole) == len(digests) else None


def digest(files: Sequence[Path], progress: Progress) -> str:
    """The digest of `files` together; of a single file its SHA-256. Raises `OSError`."""
    total = sum(file.stat().st_size for file in files) or 1
    done = 0
    digests = []
    for file in files:
        size = file.stat().st_size
        found = _known(file)
        if found is None:
            found = _hashed(
                file,
                lambda read, name=file.name, base=done: progress(  # type: ignore[misc]
                    LoadProgress("check", min(1.0, (base + read) / total), name)
                ),
            )
        done += size
        digests.append(found)
    return _together(digests)


def _together(digests: Sequence[str]) -> str:
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _known(file: Path) -> str | None:
    try:
        real = file.resolve(strict=True)
        if real.parent.name == "blobs" and _BLOB.fullmatch(real.name):
            return real.name
        note = msgspec.json.decode(_note(file).read_bytes(), type=_Note)
        return note.sha256 if note == _stamped(file, note.sha256) else None
    except (OSError, msgspec.MsgspecError):
        return None


def _hashed(file: Path, report: Callable[[int], None]) -> str:
    before = _stamped(file, "")
    sha256 = hashlib.sha256()
    done = 0
    with open(file, "rb") as opened:
        while piece := opened.read(_PIECE):
            sha256.update(piece)
            done += len(piece)
            report(done)
    if _stamped(file, "") == before:  # otherwise somebody writes to it, and nothing is remembered
        _remember(file, sha256.hexdigest())
    return sha256.hexdigest()


def _stamped(file: Path, sha256: str) -> _Note:
    status = file.stat()
    return _Note(str(file.absolute()), status.st_size, status.st_mtime_ns, status.st_ino, sha256)


def _note(file: Path) -> Path:
    return cache_dir() / "known" / f"{hashlib.sha256(os.fsencode(file.absolute())).hexdigest()[:32]}.json"


def _remember(file: Path, sha256: str) -> None:
    note = _note(file)
    note.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=note.parent, delete=False) as fresh:
        fresh.write(msgspec.json.encode(_stamped(file, sha256)))
    Path(fresh.name).replace(note)
