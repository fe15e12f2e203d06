"""The cache of converted GGUF files: one folder for each content, in Hugging Face's layout, the weights in the kernels'
layouts, quantised as they are in the file (`gguf_blocks`)."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from inferloom.errors import InvalidFormat, SourceError, SourceNotFound
from inferloom.formats import content, entries
from inferloom.sources.table import SHORT_NAMES
from inferloom.types import LoadProgress

if TYPE_CHECKING:  # importing it costs numpy, and looking things up must not
    from inferloom.formats.gguf_file import GgufFile
    from inferloom.formats.gguf_tensors import Placed

log = logging.getLogger("inferloom.formats")

Progress = Callable[[LoadProgress], None]

# Raise it when a conversion comes out differently: older folders are then rebuilt.
VERSION = 5

_SPLIT = re.compile(r"(?P<stem>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})\.gguf")


def parts(path: Path) -> list[Path]:
    """The files of a GGUF model: `path` alone, or all of `name-00001-of-00003.gguf` …; any of them may be named.

    Raises `SourceNotFound` for a part that is missing.
    """
    match = _SPLIT.fullmatch(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    names = [f"{match['stem']}-{index:05}-of-{count:05}.gguf" for index in range(1, count + 1)]
    if not 1 <= int(match["index"]) <= count:
        raise SourceNotFound(f"{path.name} is not one of the {count} parts that its name speaks of.")
    found = [path.with_name(name) for name in names]
    for part in found:
        if not part.exists():
            raise SourceNotFound(f"{path.name} comes in {count} parts, and {part.name} is not beside it.")
    return found


def converted(path: Path) -> Path | None:
    """The cache folder of the GGUF file `path`, or None if it must be converted. Reads two small files."""
    try:
        digest = content.known(parts(path))
    except OSError:
        return None
    if digest is None:
        return None
    folder = _folder(digest)
    return folder if entries.is_whole(folder, VERSION) else None


def convert(path: Path, progress: Progress) -> Path:
    """The cache folder of the GGUF file `path`, made if need be. Safe against several processes doing the same.

    Raises `InvalidFormat` for a damaged file, `LoadFailed` for one that cannot be run or if there is no room.
    """
    ready = converted(path)
    if ready is None:
        files = parts(path)
        try:
            digest = content.digest(files, progress)
        except OSError as error:
            raise SourceError(f"{path} cannot be read: {error.strerror or error}.") from error
        ready = _folder(digest)
        manifest = entries.Manifest(VERSION, digest, files[0].name, 0)
        entries.build(ready, manifest, lambda work: _fill(files, work, ready, digest, progress), progress)
    entries.mark_used(ready)
    return ready


def weights(folder: Path) -> tuple[str, ...]:
    return (str(folder / entries.WEIGHTS),)


def _folder(digest: str) -> Path:
    return entries.folder_of("gguf", digest[:32])


def _fill(files: list[Path], work: Path, folder: Path, digest: str, progress: Progress) -> None:
    from inferloom.formats.gguf_file import GgufFile

    with ExitStack() as stack:
        opened = [stack.enter_context(GgufFile(file)) for file in files]
        _write(opened, work, folder, digest, progress)


def _write(files: list[GgufFile], work: Path, folder: Path, digest: str, progress: Progress) -> None:
    from inferloom.formats import gguf_config, gguf_tensors, gguf_tokenizer

    metadata = files[0].metadata
    family = gguf_config.family_of(metadata)
    tensors = {name for file in files for name in file.tensors}
    embedding = next(
        (file.tensors["token_embd.weight"] for file in files if "token_embd.weight" in file.tensors), None
    )
    if embedding is None or len(embedding.shape) != 2:
        raise InvalidFormat("the GGUF file has no embedding matrix (token_embd.weight).")
    config = gguf_config.config_of(
        metadata,
        tied="output.weight" not in tensors,
        biased="blk.0.attn_q.bias" in tensors,
        vocab_size=embedding.shape[0],
        rope_factors=gguf_tensors.rope_factors(files),
    )
    placed = gguf_tensors.place(files, config, family=family)
    tokenizer, tokenizer_config = gguf_tokenizer.build(metadata)
    if tokenizer.get_vocab_size() > embedding.shape[0]:
        raise InvalidFormat(
            f"the GGUF file's vocabulary has {tokenizer.get_vocab_size()} tokens, its embedding {embedding.shape[0]}."
        )
    _write_weights(placed, work, folder, files[0].path.name, progress)
    tokenizer.save(str(work / "tokenizer.json"))
    _json(work / "config.json", config)
    advised = next((row.sampling for row in SHORT_NAMES.values() if row.sha256 == digest), {})
    _json(work / "generation_config.json", {**advised, **gguf_config.generation_config_of(metadata)})
    _json(work / "tokenizer_config.json", tokenizer_config)


def _write_weights(placed: list[Placed], work: Path, folder: Path, name: str, progress: Progress) -> None:
    from inferloom.formats import gguf_blocks, gguf_tensors, packed_file

    foreign = sorted({item.tensor.type.name for item in placed if gguf_blocks.is_foreign(item.tensor.type)})
    if foreign:
        log.warning("%s: tensors in %s are dequantised and kept in 8 bits", name, ", ".join(foreign))
    by_name = {item.name: item for item in placed}
    ordered = packed_file.in_order(gguf_tensors.stored(item) for item in placed)
    total = sum(tensor.size for tensor in ordered)
    entries.check_room(total, name, replaced=folder)
    done = 0
    with open(work / entries.WEIGHTS, "wb") as file:
        writer = packed_file.open_writer(file, ordered, {"format": "pt", "source": name})
        for tensor in ordered:
            for piece in gguf_tensors.pieces(by_name[tensor.name]):
                writer.write([piece])
                done += len(piece)
                progress(LoadProgress("convert", min(1.0, done / (total or 1)), name))
        writer.finish()


def _json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
