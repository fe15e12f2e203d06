"""What a source says: a path, a hub repository, a package that carries weights, or a short name for one of them."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

import msgspec

from inferloom.errors import SourceError, SourceNotFound
from inferloom.sources.table import SHORT_NAMES, ShortName

_PACKAGE = re.compile(r"pypi:(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[A-Za-z0-9][A-Za-z0-9.+!_-]*)")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]*")


class PathRef(msgspec.Struct, frozen=True):
    """A checkpoint folder or a file on this machine; absolute."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name.removesuffix(".gguf")


class HubRef(msgspec.Struct, frozen=True):
    """`owner/name@revision#file`: a repository on the hub, or one file of it."""

    repo: str
    revision: str = "main"
    file: str | None = None

    @property
    def name(self) -> str:
        return self.repo if self.file is None else PurePosixPath(self.file).name.removesuffix(".gguf")


class PackageRef(msgspec.Struct, frozen=True):
    """`pypi:package==version#path/inside`: a file or folder inside a wheel."""

    package: str
    version: str
    path: str
    sha256: str | None = None

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name.removesuffix(".gguf")


Ref = PathRef | HubRef | PackageRef


class Reference(msgspec.Struct, frozen=True):
    """A source, understood: where it is, what it is called without a name, and its row in the table if it has one."""

    source: str
    ref: Ref
    name: str
    short: ShortName | None = None


def parse(source: str) -> Reference:
    """Understand `source`. An existing path wins over a repository of the same name; a short name is always the
    table's, so that a folder that happens to lie where the server starts changes nothing (`./smollm2` names it).

    Raises `SourceNotFound` for a path that is not there and `SourceError` for what cannot be a source.
    """
    written = source.strip()
    if not written or any(ord(character) < 32 for character in written):
        raise SourceError(f"{source!r} names no model: give a path, a hub repository, or a short name.")
    if written.startswith("pypi:"):
        package = _package(written)
        return Reference(written, package, package.name)
    short = SHORT_NAMES.get(written)
    if short is not None:
        return Reference(written, _named(short), short.name, short)
    path = _existing(written)
    if path is not None:
        ref = PathRef(path)
        return Reference(written, ref, ref.name)
    if _is_path(written):
        raise SourceNotFound(
            f"there is no file or folder {written!r}; check the path, or name a hub repository."
        )
    hub = _hub(written)
    return Reference(written, hub, hub.name)


def _named(short: ShortName) -> Ref:
    if short.source.startswith("pypi:"):
        return msgspec.structs.replace(_package(short.source), sha256=short.sha256)
    return _hub(short.source)


def _existing(written: str) -> Path | None:
    try:
        path = Path(written).expanduser()
        return path.absolute() if path.exists() else None
    except (OSError, RuntimeError, ValueError):  # too long, no such home directory, a null byte
        return None


def _is_path(written: str) -> bool:
    return written.startswith(("/", "./", "../", "~")) or written in (".", "..")


def _package(written: str) -> PackageRef:
    head, separator, inside = written.partition("#")
    match = _PACKAGE.fullmatch(head)
    if match is None or not separator or not inside:
        raise SourceError(
            f"{written!r} is not a package source: write pypi:NAME==VERSION#PATH/INSIDE, with an exact version."
        )
    _check_inside(inside, written)
    return PackageRef(match["name"], match["version"], inside.rstrip("/"))


def _hub(written: str) -> HubRef:
    head, separator, file = written.partition("#")
    repo, at, revision = head.partition("@")
    if separator:
        _check_inside(file, written)
    if not _REPOSITORY.fullmatch(repo) or ".." in repo or "--" in repo:
        known = ", ".join(sorted(SHORT_NAMES)[:4])
        raise SourceNotFound(
            f"{written!r} is neither an existing path, nor a short name ({known} …; `inferloom pull --list` shows all), "
            "nor a hub repository (OWNER/NAME, with @REVISION and #FILE if need be)."
        )
    if at and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise SourceError(f"{revision!r} in {written!r} is not a revision: give a branch, a tag or a commit.")
    return HubRef(repo, revision or "main", file if separator else None)


def _check_inside(inside: str, written: str) -> None:
    parts = inside.rstrip("/").split("/")
    if not inside or "\\" in inside or any(part in ("", ".", "..") for part in parts):
        raise SourceError(
            f"{inside!r} in {written!r} is not a path inside it: use names separated by single slashes."
        )
