"""The hub's own cache on this machine, read without its library and without the network.

Its layout is documented: models--OWNER--NAME/{refs,snapshots,blobs}; a snapshot is a folder of links to blobs.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import msgspec

from inferloom.config.home import cache_dir
from inferloom.sources import hub_files
from inferloom.sources.hub_files import Need
from inferloom.sources.reference import HubRef

_COMMIT = re.compile(r"[0-9a-f]{40}")


class Index(msgspec.Struct):
    weight_map: dict[str, str]


def hub_folder() -> Path:
    """Where the hub's library keeps its files: HF_HUB_CACHE, else `hub` in HF_HOME."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        value = os.environ.get(variable)
        if value:
            return Path(os.path.expandvars(value)).expanduser()
    home = os.environ.get("HF_HOME")
    if home:
        return Path(os.path.expandvars(home)).expanduser() / "hub"
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expandvars(base)).expanduser() / "huggingface" / "hub"


def repository_folder(ref: HubRef) -> Path:
    return hub_folder() / f"models--{ref.repo.replace('/', '--')}"


def commit_of(ref: HubRef) -> str | None:
    """The commit that `ref.revision` stood for when it was last asked for, or None."""
    if _COMMIT.fullmatch(ref.revision):
        return ref.revision
    try:
        commit = (repository_folder(ref) / "refs" / ref.revision).read_text().strip()
    except OSError:
        return None
    return commit if _COMMIT.fullmatch(commit) else None


def present(ref: HubRef, need: Need) -> Path | None:
    """The snapshot's folder (or the named file in it) if everything that is needed lies there; None otherwise."""
    commit = commit_of(ref)
    if commit is None:
        return None
    folder = repository_folder(ref) / "snapshots" / commit
    wanted = _noted(ref, commit, need) or _required(folder, ref, need)
    if not wanted or not all((folder / name).is_file() for name in wanted):
        return None
    return folder if ref.file is None else folder / ref.file


def point(ref: HubRef, commit: str) -> None:
    """Note that the revision stands for `commit`, once everything of it is here."""
    if _COMMIT.fullmatch(ref.revision):
        return
    path = repository_folder(ref) / "refs" / ref.revision
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(commit)
    fresh.replace(path)


def remember(ref: HubRef, commit: str, need: Need, names: list[str]) -> None:
    """Note which files make the checkpoint, so that a snapshot others cut short is told from a whole one."""
    note = _note(ref, commit, need)
    note.parent.mkdir(parents=True, exist_ok=True)
    fresh = note.with_suffix(f".{os.getpid()}")
    fresh.write_bytes(msgspec.json.encode(sorted(names)))
    fresh.replace(note)


def _note(ref: HubRef, commit: str, need: Need) -> Path:
    key = hashlib.sha256("\n".join((ref.repo, commit, ref.file or "", need)).encode()).hexdigest()[:32]
    return cache_dir() / "hub" / f"{key}.json"


def _noted(ref: HubRef, commit: str, need: Need) -> list[str] | None:
    try:
        return msgspec.json.decode(_note(ref, commit, need).read_bytes(), type=list[str])
    except (OSError, msgspec.MsgspecError):
        return None


def _required(folder: Path, ref: HubRef, need: Need) -> list[str]:
    """What a snapshot that others downloaded must have at least; an empty list if that cannot be said."""
    if ref.file is not None:
        return [ref.file]
    if need == "everything":
        return []
    tokenizer = [] if need == "weights" else [hub_files.TOKENIZER]
    if need == "tokenizer":
        return tokenizer
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    ggufs = hub_files.gguf_choices(names)
    for index, single in (
        (hub_files.SAFETENSORS_INDEX, hub_files.SAFETENSORS),
        (hub_files.PYTORCH_INDEX, hub_files.PYTORCH),
    ):
        if single in names:
            weights = [single]
        elif index in names:
            weights = _shards(folder / index)
        else:
            continue
        extra = ["tokenizer_config.json"] if tokenizer else []
        return ["config.json", *tokenizer, *extra, *weights] if weights else []
    return ggufs if len(ggufs) == 1 else []


def _shards(index: Path) -> list[str]:
    try:
        return sorted(set(msgspec.json.decode(index.read_bytes(), type=Index).weight_map.values()))
    except (OSError, msgspec.MsgspecError):
        return []
