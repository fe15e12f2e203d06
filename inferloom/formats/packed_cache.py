"""The cache of packed weights: one entry for each content and scheme. The checkpoint's own folder keeps its config and
tokenizer; only the weights are replaced.

What is packed: float checkpoints where `quantization` asks for int8 or int4, and checkpoints that AWQ or GPTQ quantised,
which no kernel reads as they are. A GGUF file keeps its own quantisation: int8 then packs only its float matrices, int4
also those of more than four bits (int4-all: embedding and output matrix among them).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from inferloom.formats import content, entries, packing_plan
from inferloom.formats.checkpoint import Checkpoint
from inferloom.formats.json_files import read_json
from inferloom.formats.packed_file import packed_entries
from inferloom.formats.packing_plan import Scheme
from inferloom.formats.safetensors_file import read_header
from inferloom.types import LoadProgress

Progress = Callable[[LoadProgress], None]

# Raise it when packing comes out differently: older entries are then rebuilt.
VERSION = 4


def packed(checkpoint: Checkpoint, quantization: str) -> Checkpoint | None:
    """`checkpoint` with the weights that `quantization` asks for: itself if there is nothing to pack, None if that has to
    be done first. A few milliseconds.

    Raises `Unsupported` for a quantization that the checkpoint cannot have, or one it has that is not read.
    """
    config, scheme = _asked(checkpoint, quantization)
    if not scheme.name:
        return checkpoint
    digest = _known(checkpoint)
    if digest is None:
        return None
    folder = _folder(digest, config, scheme)
    return _replaced(checkpoint, folder, scheme) if entries.is_whole(folder, VERSION) else None


def pack(checkpoint: Checkpoint, quantization: str, progress: Progress) -> Checkpoint:
    """The same, packing if need be. Safe against several processes doing so at once, and against being ended.

    Raises `Unsupported`, `InvalidFormat`, and `LoadFailed` if there is no room.
    """
    config, scheme = _asked(checkpoint, quantization)
    if not scheme.name:
        return checkpoint
    digest = _known(checkpoint) or content.digest([Path(name) for name in checkpoint.weights], progress)
    folder = _folder(digest, config, scheme)
    if not entries.is_whole(folder, VERSION):
        _build(checkpoint, config, scheme, folder, digest, progress)
    for used in (folder, Path(checkpoint.folder)):  # a GGUF's entry keeps its tokenizer
        entries.mark_used(used)
    return _replaced(checkpoint, folder, scheme)


def _asked(checkpoint: Checkpoint, quantization: str) -> tuple[dict[str, Any], Scheme]:
    """The checkpoint's config.json, and what there is to do; a scheme without a name: nothing."""
    config = read_json(Path(checkpoint.folder) / "config.json")
    method = config.get("quantization_config")
    name = packing_plan.method_of(method) if isinstance(method, dict) and method else ""
    scheme = packing_plan.scheme_of(quantization, config, method=name)
    if scheme.bits and checkpoint.format == "gguf" and not _changes(checkpoint, scheme):
        scheme = Scheme()
    return config, scheme


def _changes(checkpoint: Checkpoint, scheme: Scheme) -> bool:
    """Whether the scheme changes any tensor of a converted GGUF file."""
    for name in checkpoint.weights:
        header = read_header(Path(name))
        quantised = packed_entries(header, Path(name).name)
        for tensor in header.tensors.values():
            layout, shape = quantised.get(tensor.name, (None, tensor.shape))
            if packing_plan.target(tensor.name, shape, tensor.dtype, layout, scheme) is not None:
                return True
    return False


def _known(checkpoint: Checkpoint) -> str | None:
    if checkpoint.format == "gguf":  # an entry of the cache itself: its manifest says what it was made from
        manifest = entries.manifest_of(Path(checkpoint.folder))
        return f"gguf-{manifest.version}-{manifest.sha256}" if manifest is not None else None
    return content.known([Path(name) for name in checkpoint.weights])


def _folder(digest: str, config: dict[str, Any], scheme: Scheme) -> Path:
    """What the weights are made from, and whatever else of the checkpoint decides how they come out."""
    decisive = {key: config.get(key) for key in ("quantization_config", "tie_word_embeddings")}
    text = json.dumps([digest, scheme.name, decisive], sort_keys=True)
    return entries.folder_of("packed", hashlib.sha256(text.encode()).hexdigest()[:32])


def _replaced(checkpoint: Checkpoint, folder: Path, scheme: Scheme) -> Checkpoint:
    return msgspec.structs.replace(
        checkpoint, weights=(str(folder / entries.WEIGHTS),), quantization=scheme.name
    )


def _build(
    checkpoint: Checkpoint,
    config: dict[str, Any],
    scheme: Scheme,
    folder: Path,
    digest: str,
    progress: Progress,
) -> None:
    def fill(work: Path) -> None:
        from inferloom.formats import packing

        packing.write(
            checkpoint,
            config,
            scheme,
            work / entries.WEIGHTS,
            room=lambda size: entries.check_room(
                size, f"{checkpoint.name} in {scheme.name}", replaced=folder
            ),
            progress=lambda share: progress(
                LoadProgress("pack", share, f"{checkpoint.name} in {scheme.name}")
            ),
        )

    manifest = entries.Manifest(VERSION, digest, checkpoint.name, 0, scheme.name)
    entries.build(folder, manifest, fill, progress)
