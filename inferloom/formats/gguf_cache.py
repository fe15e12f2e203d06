"""The cache of converted GGUF files: one folder per content, in Hugging Face's layout, with bf16 safetensors.

The key is the SHA-256 of the file. As hashing takes a second per gigabyte, what is known of a file is kept by its path,
size and mtime.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from inferloom.config.home import cache_dir
from inferloom.errors import InvalidFormat, LoadFailed, SourceError, SourceNotFound
from inferloom.sources.lock import exclusive
from inferloom.sources.table import SHORT_NAMES
from inferloom.types import LoadProgress

if TYPE_CHECKING:  # importing it costs numpy, and looking things up must not
    from inferloom.formats.gguf_file import GgufFile

Progress = Callable[[LoadProgress], None]

# Raise it when a conversion comes out differently: older folders are then rebuilt.
VERSION = 2

_MANIFEST = "inferloom.json"
_WEIGHTS = "model.safetensors"
_SPLIT = re.compile(r"(?P<stem>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})\.gguf")
_PIECE = 1 << 22


class Manifest(msgspec.Struct, frozen=True):
    """What a cache folder says of itself; it is written last."""

    version: int
    sha256: str
    source: str  # the file's name, for people
    weight_bytes: int


class _Known(msgspec.Struct, frozen=True):
    """What was found out about a file, valid while size and mtime (of all its parts) stay the same."""

    stamp: list[tuple[str, int, int]]  # path, bytes, mtime in ns
    sha256: str


def parts(path: Path) -> list[Path]:
    """The files of a GGUF model: `path` alone, or all of `name-00001-of-00003.gguf` …; any of them may be named.

    Raises `SourceNotFound` for a part that is missing.
    """
    match = _SPLIT.fullmatch(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    names = [f"{match['stem']}-{index:05}-of-{count:05}.gguf" for index in range(1, count + 1)]
    if not 1 <= int(match["index"]) <= count:
        raise SourceNotFound(f"{path.name} is not one of the {count} parts that its name speaks of.")
    found = [path.with_name(name) for name in names]
    for part in found:
        if not part.exists():
            raise SourceNotFound(f"{path.name} comes in {count} parts, and {part.name} is not beside it.")
    return found


def converted(path: Path) -> Path | None:
    """The cache folder of the GGUF file `path`, or None if it must be converted. Reads two small files."""
    try:
        files = parts(path)
        known = msgspec.json.decode(_note(path).read_bytes(), type=_Known)
        if known.stamp != _stamp(files):
            return None
    except (OSError, msgspec.MsgspecError):
        return None
    folder = _folder(known.sha256)
    return folder if _whole(folder) else None


def convert(path: Path, progress: Progress) -> Path:
    """The cache folder of the GGUF file `path`, made if need be. Safe against several processes doing the same.

    Raises `InvalidFormat` for a damaged file, `LoadFailed` for one that cannot be run or if there is no room.
    """
    ready = converted(path)
    if ready is not None:
        return ready
    files = parts(path)
    try:
        stamp = _stamp(files)
        digest = _hash(files, progress)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}.") from error
    folder = _folder(digest)
    try:
        wait = LoadProgress("wait", None, f"another process is converting {path.name}")
        with exclusive(cache_dir() / "locks" / f"gguf-{folder.name}.lock", on_wait=lambda: progress(wait)):
            if not _whole(folder):
                _build(files, folder, digest, progress)
            _remember(path, _Known(stamp, digest))
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise LoadFailed(
            f"could not write the converted copy of {path.name} to {cache_dir()}: {error.strerror or error}; "
            + (
                "make room or set INFERLOOM_CACHE to a larger disk."
                if full
                else "set INFERLOOM_CACHE to another folder."
            )
        ) from error
    return folder


def weights(folder: Path) -> tuple[str, ...]:
    return (str(folder / _WEIGHTS),)


def _folder(digest: str) -> Path:
    return cache_dir() / "gguf" / digest[:32]


def _note(path: Path) -> Path:
    return (
        cache_dir()
        / "gguf"
        / "known"
        / f"{hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]}.json"
    )


def _stamp(files: list[Path]) -> list[tuple[str, int, int]]:
    return [(str(file.absolute()), (status := file.stat()).st_size, status.st_mtime_ns) for file in files]


def _whole(folder: Path) -> bool:
    try:
        manifest = msgspec.json.decode((folder / _MANIFEST).read_bytes(), type=Manifest)
        return manifest.version == VERSION and (folder / _WEIGHTS).stat().st_size == manifest.weight_bytes
    except (OSError, msgspec.MsgspecError):
        return False


def _hash(files: list[Path], progress: Progress) -> str:
    digest = hashlib.sha256()
    total, done = sum(file.stat().st_size for file in files) or 1, 0
    for path in files:
        with open(path, "rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
                done += len(piece)
                progress(LoadProgress("check", min(1.0, done / total), path.name))
    return digest.hexdigest()


def _remember(path: Path, known: _Known) -> None:
    note = _note(path)
    note.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=note.parent, delete=False) as file:
        file.write(msgspec.json.encode(known))
    Path(file.name).replace(note)


def _build(files: list[Path], folder: Path, digest: str, progress: Progress) -> None:
    from inferloom.formats.gguf_file import GgufFile

    work = folder.with_name(f"{folder.name}.partial")  # we hold the lock: whatever lies there is a leftover
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        with ExitStack() as stack:
            opened = [stack.enter_context(GgufFile(file)) for file in files]
            _write(opened, work, files[0].name, digest, progress)
        if folder.exists():  # an older version; whoever maps it keeps its pages
            old = folder.with_name(f"{folder.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
            shutil.rmtree(old, ignore_errors=True)
        work.rename(folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write(files: list[GgufFile], work: Path, name: str, digest: str, progress: Progress) -> None:
    from inferloom.formats import gguf_config, gguf_tensors, gguf_tokenizer
    from inferloom.formats.safetensors_file import SafetensorsWriter

    metadata = files[0].metadata
    family = gguf_config.family_of(metadata)
    tensors = {name for file in files for name in file.tensors}
    embedding = next(
        (file.tensors["token_embd.weight"] for file in files if "token_embd.weight" in file.tensors), None
    )
    if embedding is None or len(embedding.shape) != 2:
        raise InvalidFormat("the GGUF file has no embedding matrix (token_embd.weight).")
    config = gguf_config.config_of(
        metadata,
        tied="output.weight" not in tensors,
        biased="blk.0.attn_q.bias" in tensors,
        vocab_size=embedding.shape[0],
        rope_factors=gguf_tensors.rope_factors(files),
    )
    placed = gguf_tensors.place(files, config, family=family)
    tokenizer, tokenizer_config = gguf_tokenizer.build(metadata)
    if tokenizer.get_vocab_size() > embedding.shape[0]:
        raise InvalidFormat(
            f"the GGUF file's vocabulary has {tokenizer.get_vocab_size()} tokens, its embedding {embedding.shape[0]}."
        )
    total = sum(item.tensor.elements for item in placed) * 2 or 1
    if total > shutil.disk_usage(work).free:
        raise LoadFailed(
            f"the disk is full: the converted copy of {name} needs {total / 1e6:,.0f} MB under {cache_dir()}, "
            f"{shutil.disk_usage(work).free / 1e6:,.0f} MB are free; make room or set INFERLOOM_CACHE to a larger disk."
        )
    done = 0
    with open(work / _WEIGHTS, "wb") as file:
        writer = SafetensorsWriter(
            file,
            [(item.name, "BF16", item.tensor.shape) for item in placed],
            {"format": "pt", "source": name},
        )
        for item in placed:
            for piece in gguf_tensors.as_bf16(item):
                writer.write([piece])
                done += len(piece)
                progress(LoadProgress("convert", min(1.0, done / total), name))
        writer.finish()
        size = file.tell()
    tokenizer.save(str(work / "tokenizer.json"))
    _json(work / "config.json", config)
    advised = next((row.sampling for row in SHORT_NAMES.values() if row.sha256 == digest), {})
    _json(work / "generation_config.json", {**advised, **gguf_config.generation_config_of(metadata)})
    _json(work / "tokenizer_config.json", tokenizer_config)
    for path in work.iterdir():
        _sync(path)
    _json(work / _MANIFEST, msgspec.to_builtins(Manifest(VERSION, digest, name, size)))
    _sync(work / _MANIFEST)


def _json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
