"""What lies in a checkpoint's folder: which weights, in which format, and whether they stay inside of it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from inferloom.errors import InvalidFormat, SourceError, SourceNotFound

SAFETENSORS, SAFETENSORS_INDEX = "model.safetensors", "model.safetensors.index.json"
PYTORCH, PYTORCH_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


class Found(msgspec.Struct, frozen=True):
    folder: Path
    weights: tuple[Path, ...]  # for GGUF: the one file
    format: Literal["safetensors", "gguf", "pytorch"]


class Index(msgspec.Struct):
    weight_map: dict[str, str]


def inspect(path: Path, *, trusted: Path | None = None) -> Found:
    """What `path`, a checkpoint folder or a GGUF or safetensors file, holds. `trusted`: a folder outside of it that
    links may lead to (the hub cache's blobs).

    Raises `SourceNotFound`, `SourceError` if a file has to be named, `InvalidFormat`.
    """
    if path.is_file():
        if path.suffix == ".gguf":
            return Found(path.parent, (path,), "gguf")
        if path.suffix == ".safetensors":
            return Found(_with_config(path.parent), (path,), "safetensors")
        raise InvalidFormat(
            f"{path.name} is no checkpoint that can be read: give a folder, a .gguf or a .safetensors file."
        )
    if not path.is_dir():
        raise SourceNotFound(f"there is no file or folder {str(path)!r}.")
    for name, index, kind in (
        (SAFETENSORS, SAFETENSORS_INDEX, "safetensors"),
        (PYTORCH, PYTORCH_INDEX, "pytorch"),
    ):
        if (path / index).is_file():
            shards = sharded((path / index).read_bytes(), index)
            return Found(_with_config(path), tuple(_inside(path, shard, trusted) for shard in shards), kind)  # type: ignore[arg-type]
        if (path / name).is_file():
            return Found(_with_config(path), (_inside(path, name, trusted),), kind)  # type: ignore[arg-type]
    ggufs = sorted(file.name for file in path.glob("*.gguf"))
    if len(ggufs) == 1:
        return Found(path, (_inside(path, ggufs[0], trusted),), "gguf")
    if ggufs:
        raise name_one(str(path), [str(path / name) for name in ggufs])
    loose = sorted(path.glob("*.safetensors"))
    if len(loose) == 1:
        return Found(_with_config(path), (_inside(path, loose[0].name, trusted),), "safetensors")
    raise InvalidFormat(f"{path} holds no weights: neither {SAFETENSORS}, nor {PYTORCH}, nor a GGUF file.")


def name_one(where: str, choices: list[str]) -> SourceError:
    """The error for a place with several GGUF files."""
    listed = "".join(f"\n  {choice}" for choice in choices)
    return SourceError(f"{where} holds several GGUF files; name the one you want:{listed}")


def sharded(index: bytes, name: str) -> list[str]:
    """The file names in an index, in order, each once. Raises `InvalidFormat`."""
    try:
        names = list(dict.fromkeys(msgspec.json.decode(index, type=Index).weight_map.values()))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidFormat(f"{name} cannot be read: {error}.") from error
    if not names:
        raise InvalidFormat(f"{name} names no files.")
    return sorted(names)


def check_tokenizer(folder: Path) -> None:
    """Raises `InvalidFormat` if there is no tokenizer.json."""
    if not (folder / "tokenizer.json").is_file():
        raise InvalidFormat(
            f"{folder} has no tokenizer.json; name a checkpoint that has one with `tok_model_id`."
        )


def _with_config(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise InvalidFormat(f"{folder} has no config.json, so nobody knows what its weights mean.")
    return folder


def _inside(folder: Path, name: str, trusted: Path | None) -> Path:
    """`folder/name`, if it and what it links to stay inside `folder` (or `trusted`)."""
    path = folder / name
    home = folder.resolve()
    real = path.resolve()
    allowed = real.is_relative_to(home) or (trusted is not None and real.is_relative_to(trusted.resolve()))
    if not allowed or not path.parent.resolve().is_relative_to(home):
        raise InvalidFormat(
            f"the shard {name!r} lies outside of the checkpoint {folder}; that is not followed."
        )
    if not real.is_file():
        raise SourceNotFound(f"the checkpoint {folder} is incomplete: {name} is missing.")
    return path
