"""A file on its way from the hub: what it must become, what is there of it, and whose it is meanwhile."""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from inferloom.errors import SourceError

_PIECE = 1 << 20
_LOOKS_AGAIN = 0.2  # seconds between looks at a lock that another process holds
UNFINISHED = ".inferloom.incomplete"


class RemoteFile(msgspec.Struct, frozen=True):
    """A file of a repository at a commit, with what the hub's metadata say of its content."""

    repo: str
    commit: str
    name: str
    size: int | None = None
    sha256: str | None = None  # of what the hub keeps outside of git
    git_oid: str | None = None  # SHA-1 of the git object, of everything else

    @property
    def key(self) -> str | None:
        """What the blob is most likely called."""
        return self.sha256 or self.git_oid


class Traffic:
    """What a transfer tells and asks of whoever runs it."""

    def arrived(self, count: int) -> None:
        """`count` more bytes are here; fewer than 0 where some were thrown away."""

    def waits(self, why: str) -> None:
        """Nothing moves for a while."""

    def stopped(self) -> bool:
        """Whether to give up (nothing is lost)."""
        return False

    def pause(self, seconds: float) -> None:
        threading.Event().wait(seconds)


class Interrupted(SourceError):
    """The transfer ended before its end; what arrived is kept."""


def stopped(file: RemoteFile) -> Interrupted:
    return Interrupted(f"the download of {file.repo} was stopped; what arrived is kept.")


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def place(blobs: Path, key: str) -> Path:
    """Where the unfinished blob `key` lies."""
    return blobs / f"{key}{UNFINISHED}"


def arrived(blobs: Path, key: str | None) -> int:
    """Bytes of the blob `key` that an earlier download left."""
    try:
        return place(blobs, str(key)).stat().st_size
    except OSError:
        return 0


def leftovers(blobs: Path) -> int:
    """Bytes of all unfinished downloads among `blobs`."""
    return sum(path.stat().st_size for path in blobs.glob(f"*{UNFINISHED}"))


@contextmanager
def alone(path: Path, file: RemoteFile, traffic: Traffic) -> Iterator[int]:
    """The unfinished file, open and ours alone. The kernel lets go of it when its holder ends, however it ends."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _lock(descriptor, file, traffic)
            if not _is_still(path, descriptor):  # its holder has finished: it is the blob now
                continue
            try:
                yield descriptor
            finally:
                if os.fstat(descriptor).st_size == 0 and _is_still(path, descriptor):
                    path.unlink()  # made here for the lock alone
            return
        finally:
            os.close(descriptor)


def _lock(descriptor: int, file: RemoteFile, traffic: Traffic) -> None:
    told = False
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not told:
                traffic.waits(f"another process is downloading {file.name}")
                told = True
            traffic.pause(_LOOKS_AGAIN)
            if traffic.stopped():
                raise stopped(file) from None


class Content:
    """What is there of a file, with the hash of it."""

    def __init__(self, descriptor: int, file: RemoteFile) -> None:
        self._descriptor = descriptor
        self._file = file
        self._hash = self._fresh_hash()
        self.size = 0
        while piece := os.pread(descriptor, _PIECE, self.size):
            if self._hash is not None:
                self._hash.update(piece)
            self.size += len(piece)

    def _fresh_hash(self) -> Any:
        if self._file.sha256 is not None:
            return hashlib.sha256()
        if self._file.git_oid is not None and self._file.size is not None:
            return hashlib.sha1(b"blob %d\0" % self._file.size, usedforsecurity=False)
        return None

    def append(self, piece: bytes) -> None:
        view = memoryview(piece)
        while view:
            written = os.pwrite(self._descriptor, view, self.size)
            if self._hash is not None:
                self._hash.update(view[:written])
            self.size += written
            view = view[written:]

    def clear(self) -> int:
        """Throw away what is there; the bytes that were."""
        gone, self.size = self.size, 0
        os.ftruncate(self._descriptor, 0)
        self._hash = self._fresh_hash()
        return gone

    def problem(self) -> str | None:
        """What is wrong with the whole file, or None."""
        file = self._file
        if file.size is not None and self.size != file.size:
            return f"has {self.size:,} bytes, expected {file.size:,}"
        wanted = file.sha256 or file.git_oid
        found = None if self._hash is None else self._hash.hexdigest()
        if found is not None and found != wanted:
            kind = "SHA-256" if file.sha256 else "git object id"
            return f"has the {kind} {found}, expected {wanted}"
        return None
