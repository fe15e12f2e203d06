"""One file of the hub over a connection that may break: what arrived is kept, the rest is asked for, the whole is checked.

The hub's own library begins anew with every call; here the unfinished file stays beside the blobs, so that a download
that was interrupted, even by `kill -9`, goes on where it was.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from inferloom.errors import SourceError
from inferloom.sources.unfinished import Content, Interrupted, RemoteFile, Traffic, alone, place, stopped

PAUSES = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds before each further attempt; every new byte starts them again."""
LARGEST_OVER_HTTP = 50 * 1000**3
"""Bytes; larger files the hub hands out by its own protocol alone."""
_LONGEST_PAUSE = 60.0  # that a hub's Retry-After can ask for
_BUSY = (408, 429)


class _Lost(Exception):
    """The connection broke, or the answer ended early: worth another attempt, after `seconds` if the hub said so."""

    def __init__(self, why: str, seconds: float | None = None) -> None:
        super().__init__(why)
        self.seconds = seconds


def download(file: RemoteFile, folder: Path, traffic: Traffic, *, pauses: tuple[float, ...] = PAUSES) -> None:
    """Bring `file` into the repository's `folder` of the hub's cache: the blob, and the link in its snapshot.

    Several processes may do so at once: one downloads, the others wait and find it. Raises `Interrupted` when attempts are
    used up, `SourceError` for content that is not what the hub's metadata say, the library's errors for what the hub
    refuses, and `OSError` for what the disk refuses.
    """
    if (file.size or 0) > LARGEST_OVER_HTTP:
        return _by_the_library(file, traffic)
    link = folder / "snapshots" / file.commit / file.name
    blobs = folder / "blobs"
    attempts = _Attempts(pauses)
    while True:
        try:
            file, key = _described(file)
            break
        except _Lost as lost:
            attempts.again(lost, file, traffic)
    blob = blobs / key
    blobs.mkdir(parents=True, exist_ok=True)
    with alone(place(blobs, key), file, traffic) as descriptor:
        if _is_whole(blob, file):
            traffic.arrived(blob.stat().st_size)
        else:
            _fill(file, Content(descriptor, file), traffic, pauses)
            os.fsync(descriptor)
            place(blobs, key).replace(blob)
    return _link(blob, link)


def _by_the_library(file: RemoteFile, traffic: Traffic) -> None:
    """A file that the hub's library alone can carry; it keeps nothing of a download that was interrupted."""
    from huggingface_hub import hf_hub_download

    traffic.waits(f"{file.name} is too large for HTTP: the hub's library downloads it")
    path = Path(hf_hub_download(file.repo, file.name, revision=file.commit))
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        content = Content(descriptor, file)
    finally:
        os.close(descriptor)
    problem = content.problem()
    if problem is not None:
        path.resolve().unlink()
        raise _mismatch(file, problem)
    traffic.arrived(content.size)


def _mismatch(file: RemoteFile, problem: str) -> SourceError:
    return SourceError(
        f"checksum mismatch: {file.name} of {file.repo} {problem}; the download was damaged or replaced, "
        "and was thrown away; try again."
    )


def _described(file: RemoteFile) -> tuple[RemoteFile, str]:
    """`file` with what its own headers say, and the name of its blob."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    with _translated():
        found = get_hf_file_metadata(hf_hub_url(file.repo, file.name, revision=file.commit))
    etag = found.etag or file.key
    if etag is None:
        raise SourceError(f"the hub says no ETag for {file.name} of {file.repo}, so it cannot be kept.")
    if not re.fullmatch(r"\w[\w.+=-]{0,127}", etag):
        etag = hashlib.sha256(etag.encode()).hexdigest()
    sha256 = file.sha256
    if sha256 is None and file.git_oid is None and re.fullmatch(r"[0-9a-f]{64}", etag):
        sha256 = etag  # the hub names large files by their hash
    size = file.size if file.size is not None else found.size
    return msgspec.structs.replace(file, size=size, sha256=sha256), etag


def _is_whole(blob: Path, file: RemoteFile) -> bool:
    try:
        return file.size is None or blob.stat().st_size == file.size
    except OSError:
        return False


def _fill(file: RemoteFile, content: Content, traffic: Traffic, pauses: tuple[float, ...]) -> None:
    traffic.arrived(content.size)
    # put together from several answers, one of which may have been of another content
    pieced = content.size > 0
    attempts = _Attempts(pauses)
    while True:
        if file.size is None or content.size < file.size or file.size == 0:
            before = content.size
            try:
                _ask_for_the_rest(file, content, traffic)
            except _Lost as lost:
                attempts.again(lost, file, traffic, news=content.size - before, kept=content.size)
                pieced = True
                continue
        problem = content.problem()
        if problem is None:
            return
        traffic.arrived(-content.clear())
        if not pieced:
            raise _mismatch(file, problem)
        pieced = False
        traffic.waits(f"{file.name} {problem}: starting it again")


def _ask_for_the_rest(file: RemoteFile, content: Content, traffic: Traffic) -> None:
    """One request, appended as it arrives. Raises `_Lost` if it ends before the file does."""
    from huggingface_hub import constants, get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

    url = hf_hub_url(file.repo, file.name, revision=file.commit)
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if content.size:
        headers["Range"] = f"bytes={content.size}-"
    with (
        _translated(),
        get_session().stream(
            "GET", url, headers=headers, follow_redirects=True, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
        ) as response,
    ):
        if response.status_code == 416:
            traffic.arrived(-content.clear())
            raise _Lost("the hub has nothing after what is here")
        if response.status_code >= 400:
            response.read()
            hf_raise_for_status(response)
        if content.size and not _goes_on(response, content.size):
            traffic.arrived(-content.clear())
        for piece in response.iter_bytes():  # as they arrive: none is held back when the connection breaks
            if traffic.stopped():
                raise stopped(file)
            content.append(piece)
            traffic.arrived(len(piece))
            if file.size is not None and content.size > file.size:
                return  # more than it can be: the check says so
    if file.size is not None and content.size < file.size:
        raise _Lost(f"the answer ended after {content.size:,} of {file.size:,} bytes")


def _goes_on(response: Any, offset: int) -> bool:
    """Whether the answer begins at `offset`; a hub that does not know Range sends everything."""
    return response.status_code == 206 and str(response.headers.get("Content-Range", "")).startswith(
        f"bytes {offset}-"
    )


class _Attempts:
    """Waits before each further attempt, and raises `Interrupted` after the last."""

    def __init__(self, pauses: tuple[float, ...]) -> None:
        self._pauses = pauses
        self._failed = 0

    def again(self, lost: _Lost, file: RemoteFile, traffic: Traffic, *, news: int = 0, kept: int = 0) -> None:
        """`news`: bytes that the failed attempt brought; `kept`: all that are here."""
        self._failed = 1 if news > 0 else self._failed + 1
        if self._failed > len(self._pauses):
            have = f"; the {kept:,} bytes of {file.name} that arrived are kept" if kept else ""
            raise Interrupted(
                f"the connection to the hub was lost {self._failed} times in a row while {file.repo} was downloaded "
                f"({lost}){have}. Run the same command again to go on."
            ) from lost.__cause__
        planned = self._pauses[self._failed - 1]
        seconds = planned if lost.seconds is None else min(lost.seconds, _LONGEST_PAUSE)
        when = f"in {seconds:.0f} s" if seconds else "now"
        traffic.waits(f"connection lost ({lost}): attempt {self._failed} of {len(self._pauses)} {when}")
        traffic.pause(seconds)
        if traffic.stopped():
            raise stopped(file)


@contextmanager
def _translated() -> Iterator[None]:
    """Errors of the connection, and of a hub that is busy, become `_Lost`; all others pass."""
    try:
        yield
    except (_Lost, SourceError):
        raise
    except Exception as error:
        if is_transport(error):
            raise _Lost(_short(error)) from error
        response = getattr(error, "response", None)
        status = getattr(response, "status_code", None)
        if response is None or not (status in _BUSY or (isinstance(status, int) and status >= 500)):
            raise
        asked = str(response.headers.get("Retry-After", ""))
        seconds = float(asked) if asked.isdecimal() else None
        raise _Lost(f"the hub answered {status}", seconds) from error


def is_transport(error: BaseException) -> bool:
    """Whether the connection is to blame; by name, because releases of the library differ in the HTTP client they use."""
    return any(kind.__name__ == "TransportError" for kind in type(error).__mro__)


def _short(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0] or type(error).__name__


def _link(blob: Path, link: Path) -> None:
    """Put the blob into its snapshot; a copy where the file system has no links."""
    link.parent.mkdir(parents=True, exist_ok=True)
    fresh = link.with_name(f".{link.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        fresh.symlink_to(os.path.relpath(blob, link.parent))
    except OSError:
        shutil.copyfile(blob, fresh)
    fresh.replace(link)
