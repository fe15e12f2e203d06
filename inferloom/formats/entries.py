"""Entries of the cache: one folder for each checkpoint that was converted or packed.

`gguf/KEY` are GGUF files in the kernels' layouts, `packed/KEY` the weights of checkpoints that were quantised here. A folder
is built beside its place and renamed, its manifest is written last, and a lock keeps a second process from building the
same. `models/NAME` are downloads: they are listed, and never removed to make room, as they may not be had again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from inferloom.config.disk import sync
from inferloom.config.home import cache_dir, cache_limit
from inferloom.errors import LoadFailed
from inferloom.sources.lock import exclusive, exclusive_at_once, is_held
from inferloom.types import LoadProgress

Progress = Callable[[LoadProgress], None]

WEIGHTS = "model.safetensors"
MANIFEST = "inferloom.json"
KINDS = ("gguf", "packed")
DOWNLOADS = "models"
_UNFINISHED = (".partial", ".old")
_WEIGHTS = (".safetensors", ".bin")
_FRESH = 60.0  # seconds for which an entry that was just asked for is not removed: whoever asked is about to map it


class Manifest(msgspec.Struct, frozen=True):
    """What an entry says of itself. Its mtime is when the entry was last used."""

    version: int
    sha256: str  # of what it was made from
    source: str  # the name of that, for people
    weight_bytes: int
    scheme: str = ""  # "int8", "int4", "int4-all" for what was quantised here


class Entry(msgspec.Struct, frozen=True):
    """An entry as `inferloom cache` lists it."""

    kind: str
    key: str
    name: str
    scheme: str
    bytes: int
    last_use: float  # seconds since the epoch
    folder: Path

    @property
    def in_use(self) -> bool:
        """Whether a worker has the weights mapped: it holds a shared lock on them."""
        return any(is_held(file) for file in self.folder.rglob("*") if file.suffix in _WEIGHTS)


def folder_of(kind: str, key: str) -> Path:
    return cache_dir() / kind / key


def manifest_of(folder: Path) -> Manifest | None:
    """What the entry says of itself; None where there is none."""
    try:
        return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.MsgspecError):
        return None


def is_whole(folder: Path, version: int) -> bool:
    """Whether the entry is complete and of that version."""
    manifest = manifest_of(folder)
    try:
        return (
            manifest is not None
            and manifest.version == version
            and (folder / WEIGHTS).stat().st_size == manifest.weight_bytes
        )
    except OSError:
        return False


def hold(path: Path, descriptor: int) -> None:
    """Keep the entry with the weights `path` for as long as `descriptor`, opened on them, stays open, and note its use.
    Files outside of the cache are left alone."""
    if path.is_relative_to(cache_dir()):
        # a file system without locks: it may be removed, the mapping stays
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        mark_used(path.parent)


def mark_used(folder: Path) -> None:
    """Note that the entry was used just now. What is no entry is left alone."""
    if folder.is_relative_to(cache_dir()):
        manifest = folder / MANIFEST
        with contextlib.suppress(OSError):
            os.utime(manifest if manifest.exists() else folder)


def build(folder: Path, manifest: Manifest, write: Callable[[Path], None], progress: Progress) -> None:
    """Make the entry `folder` unless another process has just done so. `write` fills a fresh folder with everything but
    the manifest, whose `weight_bytes` are filled in here.

    Raises `LoadFailed` where it cannot be written, and whatever `write` raises; the cache is then as before.
    """
    what = f"{manifest.source} in {manifest.scheme}" if manifest.scheme else manifest.source
    wait = LoadProgress("wait", None, f"another process is converting {what}")
    try:
        with exclusive(_lock(folder), on_wait=lambda: progress(wait)):
            if not is_whole(folder, manifest.version):
                _build(folder, manifest, write)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise LoadFailed(
            f"could not write the converted copy of {what} to {cache_dir()}: {error.strerror or error}; "
            + (
                "make room or set INFERLOOM_CACHE to a larger disk."
                if full
                else "set INFERLOOM_CACHE to another folder."
            )
        ) from error


def check_room(size: int, what: str, *, replaced: Path) -> None:
    """Make room for `size` more bytes: entries that nobody has mapped go, the longest unused first, until the cache stays
    within its limit. `replaced` is the entry that is being made.

    Raises `LoadFailed` with the numbers where the disk is too full all the same, or the limit too low.
    """
    limit = cache_limit()
    if size > limit:
        raise LoadFailed(
            f"the converted copy of {what} needs {size / 1e6:,.0f} MB, and the cache may hold {limit / 1e6:,.0f} MB; "
            "raise INFERLOOM_CACHE_LIMIT."
        )
    remove_leftovers()  # ours is locked
    now = time.time()
    candidates = [entry for entry in entries() if entry.folder != replaced]
    held = sum(entry.bytes for entry in candidates)
    free = shutil.disk_usage(cache_dir()).free
    for entry in sorted(candidates, key=lambda entry: entry.last_use):
        if held + size <= limit and size <= free:
            break
        if now - entry.last_use > _FRESH and remove(entry):
            held -= entry.bytes
            free += entry.bytes
    free = shutil.disk_usage(cache_dir()).free
    if size > free:
        raise LoadFailed(
            f"the disk is full: the converted copy of {what} needs {size / 1e6:,.0f} MB under {cache_dir()}, "
            f"{free / 1e6:,.0f} MB are free; make room or set INFERLOOM_CACHE to a larger disk."
        )


def entries() -> list[Entry]:
    """Everything that was converted or packed, also by older versions, in no order."""
    return [entry for kind in KINDS for entry in _of_kind(kind)]


def downloads() -> list[Entry]:
    """The weights that were fetched in packages; of these, `last_use` is when they were fetched or last mapped."""
    try:
        folders = [path for path in (cache_dir() / DOWNLOADS).iterdir() if path.is_dir()]
    except OSError:
        return []
    return [
        Entry(DOWNLOADS, path.name, path.name, "", _bytes_in(path), path.stat().st_mtime, path)
        for path in folders
        if path.suffix not in _UNFINISHED
    ]


def remove(entry: Entry) -> bool:
    """Delete the entry unless a worker has it mapped or a process is building it anew; whether it is gone."""
    with exclusive_at_once(_lock(entry.folder)) as alone:
        if not alone or entry.in_use:
            return False
        _discard(entry.folder)
        return True


def remove_leftovers() -> int:
    """Delete what processes that were killed left behind; bytes that are free again."""
    freed = 0
    for kind in KINDS:
        for folder in (cache_dir() / kind).glob("*.*"):
            if folder.suffix not in _UNFINISHED:
                continue
            with exclusive_at_once(_lock(folder.with_suffix(""))) as alone:
                if alone:
                    freed += _bytes_in(folder)
                    shutil.rmtree(folder, ignore_errors=True)
    return freed


def _bytes_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _lock(folder: Path) -> Path:
    # as `sources.packages` locks
    prefix = "" if folder.parent.name == DOWNLOADS else f"{folder.parent.name}-"
    return cache_dir() / "locks" / f"{prefix}{folder.name}.lock"


def _discard(folder: Path) -> None:
    """Rename, then delete: nobody sees half an entry, and whoever maps it keeps its pages."""
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        folder.rename(old)
    shutil.rmtree(old, ignore_errors=True)


def _of_kind(kind: str) -> Iterator[Entry]:
    try:
        folders = [path for path in (cache_dir() / kind).iterdir() if path.suffix not in _UNFINISHED]
    except OSError:
        return
    for folder in folders:
        try:
            status = (folder / MANIFEST).stat()
            manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
            size = _bytes_in(folder)
        except (OSError, msgspec.MsgspecError):
            continue
        yield Entry(kind, folder.name, manifest.source, manifest.scheme, size, status.st_mtime, folder)


def _build(folder: Path, manifest: Manifest, write: Callable[[Path], None]) -> None:
    work = folder.with_name(f"{folder.name}.partial")  # we hold the lock: whatever lies there is a leftover
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        write(work)
        for path in work.iterdir():
            sync(path)
        size = (work / WEIGHTS).stat().st_size
        (work / MANIFEST).write_bytes(
            msgspec.json.encode(msgspec.structs.replace(manifest, weight_bytes=size))
        )
        sync(work / MANIFEST)
        _discard(folder)  # an older version
        work.rename(folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)
