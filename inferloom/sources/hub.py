"""Repositories on the hub, fetched into the cache of its own library, whose tokens, mirrors and offline switch hold.

The library asks and authorises; the files are carried by `transfer`, which goes on where a broken download ended.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path

import msgspec

from inferloom.errors import InferloomError, InvalidFormat, SourceError
from inferloom.sources import hub_cache, hub_files, transfer, unfinished
from inferloom.sources.hub_errors import explain
from inferloom.sources.hub_files import Need
from inferloom.sources.reference import HubRef
from inferloom.sources.unfinished import Interrupted, RemoteFile, Traffic
from inferloom.types import LoadProgress

Progress = Callable[[LoadProgress], None]

_AT_ONCE = 4  # files of one repository; a hub serves one connection slower than a line can carry


def fetch(ref: HubRef, progress: Progress, *, need: Need) -> Path:
    """Download what is needed of `ref` into the hub's cache; returns the snapshot's folder or the named file in it.

    Raises `SourceNotFound` (no such repository, revision or file), `SourceError` (gated, offline, network, disk full)
    and `InvalidFormat` (no weights), each with its own sentence.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise SourceError(
            f"HF_HUB_OFFLINE is set, and {ref.repo} is not complete in the hub's cache {hub_cache.hub_folder()}; "
            "unset it, or download the repository where there is a network."
        )
    progress(LoadProgress("download", None, ref.repo))
    try:
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except ImportError as error:
        raise SourceError(
            f"the package huggingface_hub cannot be imported: {error}; install it again."
        ) from error
    disable_progress_bars()
    try:
        return _fetch(ref, progress, need)
    except InferloomError:
        raise
    except Exception as error:
        raise explain(ref, error) from error


def _fetch(ref: HubRef, progress: Progress, need: Need) -> Path:
    files = _files(ref)
    commit = next(iter(files.values())).commit
    names = sorted(files)
    folder = hub_cache.repository_folder(ref)
    wanted = names if need == "everything" else _choose(ref, names, need)
    if index := next((name for name in wanted if name.endswith(".index.json")), None):
        _download(ref, [files[index]], folder, progress)
        wanted += _shards(folder / "snapshots" / commit / index, names, ref.repo)
    wanted = list(dict.fromkeys(wanted))
    _download(ref, [files[name] for name in wanted], folder, progress)
    hub_cache.point(ref, commit)
    hub_cache.remember(ref, commit, need, wanted)
    found = hub_cache.present(ref, need)
    if found is None:
        raise SourceError(f"{ref.repo} changed while it was downloaded; try again.")
    return found


def _files(ref: HubRef) -> dict[str, RemoteFile]:
    """The repository's files by name, with what the hub says of each."""
    from huggingface_hub import HfApi

    def ask() -> dict[str, RemoteFile]:
        info = HfApi().model_info(ref.repo, revision=ref.revision, files_metadata=True)
        assert info.sha is not None
        return {
            file.rfilename: RemoteFile(
                repo=ref.repo,
                commit=info.sha,
                name=file.rfilename,
                size=file.lfs.size if file.lfs else file.size,
                sha256=file.lfs.sha256 if file.lfs else None,
                git_oid=None if file.lfs else file.blob_id,
            )
            for file in info.siblings or []
        }

    try:
        files = ask()
    except Exception as error:
        if not transfer.is_transport(error):
            raise
        files = ask()  # a kept connection that the other side has closed meanwhile looks the same
    if not files:
        raise InvalidFormat(
            f"{ref.repo} has no files at revision {ref.revision!r}; name another one: {ref.repo}@REVISION."
        )
    for name in files:
        if any(part in ("", ".", "..") for part in name.split("/")):
            raise InvalidFormat(f"{ref.repo} has a file {name!r}, which leaves its folder.")
    return files


def _download(ref: HubRef, files: Iterable[RemoteFile], folder: Path, progress: Progress) -> None:
    """Bring those of `files` that are not there yet; several at once."""
    missing = [file for file in files if not (folder / "snapshots" / file.commit / file.name).is_file()]
    if not missing:
        return
    total = sum(file.size or 0 for file in missing)
    _check_room(ref, total - sum(unfinished.arrived(folder / "blobs", file.key) for file in missing))
    traffic = _Reported(ref, total, progress)
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        running = [threads.submit(transfer.download, file, folder, traffic) for file in missing]
        try:
            wait(running, return_when=FIRST_EXCEPTION)
        finally:
            traffic.stop()  # the others end at their next byte, whatever brought us here
            threads.shutdown(cancel_futures=True)
    failures = [failure for one in running if not one.cancelled() and (failure := one.exception())]
    if failures:
        # those that were told to stop because of another are not the reason
        raise next((one for one in failures if not isinstance(one, Interrupted)), failures[0])


class _Reported(Traffic):
    """The transfers of one repository as one progress."""

    def __init__(self, ref: HubRef, total: int, progress: Progress) -> None:
        self._ref = ref
        self._total = total
        self._progress = progress
        self._arrived = 0
        self._said = 0.0
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def arrived(self, count: int) -> None:
        with self._lock:
            self._arrived += count
            now = time.monotonic()
            if now - self._said < 0.1 and self._arrived < self._total:
                return
            self._said = now
            fraction = min(1.0, self._arrived / self._total) if self._total else None
            megabytes = f"{self._arrived / 1e6:,.0f} of {self._total / 1e6:,.0f} MB"
            self._progress(LoadProgress("download", fraction, f"{self._ref.repo}: {megabytes}"))

    def waits(self, why: str) -> None:
        with self._lock:
            self._progress(LoadProgress("download", None, f"{self._ref.repo}: {why}"))

    def stopped(self) -> bool:
        return self._stop.is_set()

    def stop(self) -> None:
        self._stop.set()

    def pause(self, seconds: float) -> None:
        self._stop.wait(seconds)


def _choose(ref: HubRef, names: list[str], need: Need) -> list[str]:
    """The files to download, with an index but not yet what it names. Refuses before anything large is downloaded."""
    if ref.file is not None:
        if not ref.file.endswith(".gguf"):
            raise SourceError(
                f"{ref.file!r} is no GGUF file, and only those are named with #; name {ref.repo} alone."
            )
        return hub_files.gguf_parts(ref.file, names, ref.repo)
    small = hub_files.small_files(names, need)
    weights: list[str] = []
    if need != "tokenizer":
        index = hub_files.index_file(names)
        weights = [index] if index is not None else hub_files.single_weights(names, ref.repo)
    if any(name.endswith(".gguf") for name in weights):
        return weights
    if need != "tokenizer" and "config.json" not in small:
        raise InvalidFormat(f"{ref.repo} has no config.json, so nobody knows what its weights mean.")
    if need != "weights" and hub_files.TOKENIZER not in small:
        raise InvalidFormat(
            f"{ref.repo} has no tokenizer.json; name a checkpoint that has one with `tok_model_id`."
        )
    return small + weights


def _shards(index: Path, names: list[str], repo: str) -> list[str]:
    try:
        shards = sorted(
            set(msgspec.json.decode(index.read_bytes(), type=hub_cache.Index).weight_map.values())
        )
    except msgspec.MsgspecError as error:
        raise InvalidFormat(f"{index.name} of {repo} cannot be read: {error}.") from error
    absent = [shard for shard in shards if shard not in names]
    if absent:
        raise InvalidFormat(
            f"{index.name} of {repo} names {absent[0]!r}, which the repository does not have."
        )
    return shards


def _check_room(ref: HubRef, total: int) -> None:
    place = hub_cache.hub_folder()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if total > free:
        raise SourceError(
            f"the disk is full: {ref.repo} needs {total / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free under "
            f"{hub_cache.hub_folder()}; make room or set HF_HOME to a larger disk."
        )
