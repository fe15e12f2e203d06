"""Repositories on the hub, fetched with its own library: its cache, tokens, mirrors and offline switch keep working."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from inferloom.errors import InferloomError, InvalidFormat, SourceError, SourceNotFound
from inferloom.sources import hub_cache, hub_files
from inferloom.sources.hub_files import Need
from inferloom.sources.reference import HubRef
from inferloom.types import LoadProgress

Progress = Callable[[LoadProgress], None]

_UNREACHABLE = {"ConnectError", "TimeoutException", "ProxyError", "NetworkError", "RemoteProtocolError"}
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


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
        raise _explain(ref, error) from error


def _fetch(ref: HubRef, progress: Progress, need: Need) -> Path:
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    info = HfApi().model_info(ref.repo, revision=ref.revision, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    commit = info.sha
    assert commit is not None
    names = sorted(sizes)
    wanted = _choose(ref, names, need)
    if index := next((name for name in wanted if name.endswith(".index.json")), None):
        path = Path(hf_hub_download(ref.repo, index, revision=commit))
        wanted += _shards(path, names, ref.repo)
    folder = hub_cache.repository_folder(ref)
    missing = [name for name in wanted if not (folder / "snapshots" / commit / name).is_file()]
    total = sum(sizes[name] for name in missing)
    _check_room(ref, total)
    with _watched(folder / "blobs", ref, total, progress):
        snapshot_download(ref.repo, revision=ref.revision, allow_patterns=[_literal(name) for name in wanted])
    hub_cache.remember(ref, commit, need, wanted)
    found = hub_cache.present(ref, need)
    if found is None:
        raise SourceError(f"{ref.repo} changed while it was downloaded; try again.")
    return found


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


def _literal(name: str) -> str:
    """`name` as a pattern that matches it alone."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)


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


@contextmanager
def _watched(blobs: Path, ref: HubRef, total: int, progress: Progress) -> Iterator[None]:
    """Report how much of `total` bytes has arrived in `blobs` while the library is downloading there."""
    before = _bytes_in(blobs)
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            arrived = min(total, max(0, _bytes_in(blobs) - before))
            detail = f"{ref.repo}: {arrived / 1e6:,.0f} of {total / 1e6:,.0f} MB"
            progress(LoadProgress("download", arrived / total if total else None, detail))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _bytes_in(blobs: Path) -> int:
    total = 0
    try:
        for entry in os.scandir(blobs):
            total += entry.stat().st_blocks * 512  # an unfinished blob may be a file with holes
    except OSError:
        pass
    return total


# --- what went wrong ------------------------------------------------------------------------------------------------


def _explain(ref: HubRef, error: BaseException) -> InferloomError:
    from huggingface_hub import errors

    causes = list(_causes(error))
    if any(isinstance(cause, OSError) and cause.errno in _NO_ROOM for cause in causes):
        return SourceError(
            f"the disk is full: {ref.repo} does not fit under {hub_cache.hub_folder()}; "
            "make room or set HF_HOME to a larger disk."
        )
    for cause in causes:
        if isinstance(cause, errors.GatedRepoError):
            return SourceError(
                f"{ref.repo} is gated: accept its licence at {_endpoint()}/{ref.repo}, make a token there, "
                "and set HF_TOKEN to it."
            )
        if isinstance(cause, errors.RepositoryNotFoundError):
            return SourceNotFound(
                f"the hub has no repository {ref.repo!r} that you may see; check the name, "
                "and set HF_TOKEN if it is a private one."
            )
        if isinstance(cause, errors.RevisionNotFoundError):
            return SourceNotFound(
                f"{ref.repo} has no revision {ref.revision!r}; name a branch, a tag or a commit."
            )
        if isinstance(cause, errors.OfflineModeIsEnabled):
            return SourceError(f"HF_HUB_OFFLINE is set, and {ref.repo} is not complete in the hub's cache.")
        status = _status(cause)
        if status == 401:
            return SourceError(
                f"the hub refused the token in HF_TOKEN for {ref.repo}; make a new one and set it."
            )
        if status == 403:
            return SourceError(
                f"the hub does not let the token in HF_TOKEN read {ref.repo}; ask its owner for access."
            )
        if status is not None:
            return SourceError(f"the hub answered {status} for {ref.repo}; try again later.")
    if any(_UNREACHABLE & {kind.__name__ for kind in type(cause).__mro__} for cause in causes):
        return SourceError(
            f"no network: the hub at {_endpoint()} could not be reached for {ref.repo}; check the connection, the proxy "
            "settings or HF_ENDPOINT, or set HF_HUB_OFFLINE=1 if the files are here already."
        )
    return SourceError(f"{ref.repo} could not be downloaded: {str(error).strip() or type(error).__name__}")


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _status(error: Any) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
