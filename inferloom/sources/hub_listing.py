"""The repositories in the hub's cache: what there is of each, when it was used, and how to be rid of one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from inferloom.errors import Conflict
from inferloom.sources import hub_cache, unfinished
from inferloom.sources.lock import is_held
from inferloom.sources.reference import HubRef

_FOLDER = re.compile(r"models--(?P<repo>[^-].*)")
_WEIGHTS = (".safetensors", ".gguf", ".bin")


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A commit of which files are here, and the branches and tags that stood for it when they were asked for."""

    commit: str
    refs: list[str]
    files: int
    whole: bool  # everything that a model needs is here

    @property
    def revision(self) -> str:
        return f"{', '.join(self.refs)} ({self.commit[:7]})" if self.refs else self.commit[:7]


class CachedRepository(msgspec.Struct, frozen=True, kw_only=True):
    repo: str
    folder: Path
    bytes: int  # on the disk, each blob once, unfinished ones too
    unfinished_bytes: int
    last_use: float  # seconds since the epoch
    architecture: str  # as its config.json says; empty where there is none
    snapshots: list[Snapshot]

    @property
    def whole(self) -> bool:
        return any(snapshot.whole for snapshot in self.snapshots)


def repositories() -> list[CachedRepository]:
    """Every model in the hub's cache, by name."""
    try:
        folders = sorted(hub_cache.hub_folder().iterdir())
    except OSError:
        return []
    found = []
    for folder in folders:
        match = _FOLDER.fullmatch(folder.name)
        if match is not None and folder.is_dir():
            found.append(_read(folder, match["repo"].replace("--", "/", 1)))
    return found


def _read(folder: Path, repo: str) -> CachedRepository:
    total, last_use = 0, 0.0
    for path in _files(folder):
        with contextlib.suppress(OSError):  # renamed meanwhile
            status = path.stat()
            total += status.st_size
            last_use = max(last_use, status.st_mtime)
    for link in _weights(folder):
        with contextlib.suppress(OSError):
            last_use = max(last_use, link.stat().st_atime)  # of the weights alone: a listing reads the rest
    snapshots = [_snapshot(path, repo) for path in _children(folder / "snapshots") if path.is_dir()]
    return CachedRepository(
        repo=repo,
        folder=folder,
        bytes=total,
        unfinished_bytes=unfinished.leftovers(folder / "blobs"),
        last_use=last_use,
        architecture=next(filter(None, (_architecture(folder, snapshot) for snapshot in snapshots)), ""),
        snapshots=snapshots,
    )


def _snapshot(path: Path, repo: str) -> Snapshot:
    refs_folder = path.parent.parent / "refs"
    refs = []
    for file in _files(refs_folder):
        with contextlib.suppress(OSError):
            if not file.name.startswith(".") and file.read_text().strip() == path.name:
                refs.append(str(file.relative_to(refs_folder)))
    names = [str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()]
    ref = HubRef(repo, path.name)
    whole = any(name.endswith(".gguf") for name in names) or any(
        hub_cache.present(ref, need) is not None for need in ("checkpoint", "everything", "weights")
    )
    return Snapshot(commit=path.name, refs=sorted(refs), files=len(names), whole=whole)


def _architecture(folder: Path, snapshot: Snapshot) -> str:
    try:
        data = (folder / "snapshots" / snapshot.commit / "config.json").read_bytes()
        config = msgspec.json.decode(data, type=dict[str, Any])
    except (OSError, msgspec.MsgspecError):
        return ""
    architectures = config.get("architectures")
    return str(architectures[0]) if isinstance(architectures, list) and architectures else ""


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _weights(folder: Path) -> Iterator[Path]:
    return (link for link in folder.glob("snapshots/**/*") if link.suffix in _WEIGHTS)


def _files(folder: Path) -> Iterator[Path]:
    """Files below `folder`; a link is another name for one of them."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            yield path


def remove(cached: CachedRepository) -> None:
    """Delete everything that the cache has of it. Raises `Conflict` while a worker has its weights mapped or a process
    downloads it."""
    for path in _files(cached.folder):
        if path.name.endswith(unfinished.UNFINISHED) and is_held(path):
            raise Conflict(f"{cached.repo} is being downloaded by another process; stop that first.")
    for link in _weights(cached.folder):
        if _is_leased(link):
            raise Conflict(f"{cached.repo} is in use by a model that is loaded; unload it first.")
    away = cached.folder.with_name(f".{cached.folder.name}.{os.getpid()}.removed")
    cached.folder.rename(away)  # at once: nobody finds half a model
    shutil.rmtree(away)
    shutil.rmtree(cached.folder.parent / ".locks" / cached.folder.name, ignore_errors=True)


def _is_leased(path: Path) -> bool:
    """Whether a worker holds a read lease on the file: none for writing is granted then. Not known, and False, for
    files of others and on file systems without leases."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False
