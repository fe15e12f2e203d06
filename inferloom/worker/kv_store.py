"""Where cached prefixes wait while their model is not loaded: files of KV pages (`worker.spilled`), in memory, then on disk.

`find` before a load and `keep` before an unload are all that is asked of it. What is on the shelf in memory is bounded, and so
is the one on disk: the longest unused goes from the first to the second, and from there for good. Blocking calls, to be made
in a thread; one process at a time uses a shelf of a given place, others have theirs beside it.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from inferloom.config.home import cache_dir

log = logging.getLogger("inferloom.worker")

_SHARED_MEMORY = Path("/dev/shm")
_SUFFIX = ".kv"
_MARK = "cache"  # the file that names the cache whose prefixes a folder in memory keeps
_LEAST = 1 << 20  # bytes of a file that is worth it


class Kept(msgspec.Struct, frozen=True):
    """A place for a file that is about to be written: at most `max_bytes` of it."""

    path: Path
    max_bytes: int


class Shelf:
    """A folder whose files are together at most `limit` bytes; a file's mtime is when it was last used."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit

    def path(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"

    def ready(self) -> bool:
        """Make the folder, for us alone. False where that cannot be, or where it is somebody else's."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = self.folder.lstat()
        except OSError as error:
            log.warning("cached prefixes cannot be kept in %s: %s", self.folder, error.strerror)
            return False
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
            log.warning("cached prefixes are not kept in %s: others may read or write there", self.folder)
            return False
        return True

    def files(self) -> list[tuple[Path, int]]:
        """Path and bytes of each file, the longest unused first."""
        found = []
        with contextlib.suppress(OSError):
            for path in self.folder.glob(f"*{_SUFFIX}"):
                with contextlib.suppress(OSError):
                    status = path.stat()
                    found.append((status.st_mtime_ns, path, status.st_size))
        return [(path, size) for _, path, size in sorted(found)]

    @property
    def bytes(self) -> int:
        return sum(size for _, size in self.files())

    def make_room(self, size: int, *, evict: Callable[[Path, int], None]) -> bool:
        """Have `evict` take away files, the longest unused first, until `size` more bytes fit. False: they never do."""
        if size > self.limit:
            return False
        files = self.files()
        held = sum(one for _, one in files)
        for path, one in files:
            if held + size <= self.limit:
                break
            evict(path, one)
            held -= one
        return True


class KvStore:
    """Limits are in bytes; 0: nothing is kept there."""

    def __init__(self, *, memory: int, disk: int, shelves: tuple[Path, Path] | None = None) -> None:
        """`shelves`: the folders, in memory and on disk; by default one of the machine's shared memory, where it has any,
        and one of the cache."""
        fast, slow = shelves or (_fast_folder(), cache_dir() / "kv")
        self._mark: Path | None = None
        if not shelves and not _SHARED_MEMORY.is_dir():
            memory = 0
        elif not shelves:
            _remove_orphans()
            self._mark = fast / _MARK
        self._shelves = [Shelf(fast, memory), Shelf(slow, disk)]
        self._lock = threading.Lock()

    @property
    def memory_bytes(self) -> int:
        """That kept prefixes take of the machine's memory now."""
        return self._shelves[0].bytes

    def find(self, key: str) -> Path | None:
        """The file that was kept under `key`. It is now the most recently used one."""
        with self._lock:
            for shelf in self._shelves:
                path = shelf.path(key)
                with contextlib.suppress(OSError):
                    os.utime(path)
                    return path
        return None

    @contextmanager
    def keep(self, key: str, *, wanted: int) -> Iterator[Kept | None]:
        """A place to write at most `wanted` bytes to, while this lasts; None where there is none. What was kept under the
        key goes once another file has taken its place."""
        with self._lock:
            kept = self._place(key, wanted)
        try:
            yield kept
        finally:
            with self._lock:
                for shelf in self._shelves:
                    if kept is not None and kept.path.exists() and shelf.path(key) != kept.path:
                        shelf.path(key).unlink(missing_ok=True)
                    if kept is not None and shelf.path(key) == kept.path:
                        shelf.make_room(0, evict=self._drop)

    def _place(self, key: str, wanted: int) -> Kept | None:
        for shelf in self._shelves:
            size = min(wanted, shelf.limit)
            if size < min(wanted, _LEAST) or not size or not shelf.ready():
                continue
            if self._mark is not None and shelf is self._shelves[0]:
                self._mark.write_bytes(os.fsencode(cache_dir()))
            free = _free_bytes(shelf.folder)
            evict = self._demote if shelf is self._shelves[0] else self._drop
            others = size - _size(shelf.path(key))  # the file that will be replaced
            if shelf.make_room(max(0, others), evict=evict) and free >= size:
                return Kept(shelf.path(key), size)
        return None

    def _demote(self, path: Path, size: int) -> None:
        """From memory to disk, where it fits."""
        disk = self._shelves[1]
        if size <= disk.limit and disk.ready() and disk.make_room(size, evict=self._drop):
            target = disk.folder / path.name
            fresh = target.with_suffix(f".{os.getpid()}.partial")
            try:
                shutil.copy2(path, fresh)
                fresh.replace(target)
            except OSError as error:
                log.warning("cached prefixes do not fit on the disk: %s", error.strerror)
                fresh.unlink(missing_ok=True)
        path.unlink(missing_ok=True)

    @staticmethod
    def _drop(path: Path, size: int) -> None:
        path.unlink(missing_ok=True)


def _fast_folder() -> Path:
    """One for each user and cache."""
    place = hashlib.blake2b(os.fsencode(cache_dir()), digest_size=6).hexdigest()
    return _SHARED_MEMORY / f"inferloom-{os.getuid()}-{place}"


def _remove_orphans() -> None:
    """Memory that was kept for caches which are no more: nothing else would ever free it."""
    for folder in _SHARED_MEMORY.glob(f"inferloom-{os.getuid()}-*"):
        with contextlib.suppress(OSError):
            if not Path(os.fsdecode((folder / _MARK).read_bytes())).is_dir():
                shutil.rmtree(folder, ignore_errors=True)


def _free_bytes(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
