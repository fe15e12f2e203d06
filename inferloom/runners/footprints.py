"""A model's files: where they are, what they will take of the device, and what tells them from others. No weights are read."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import importlib.util
import logging
import time
from pathlib import Path

import msgspec

from inferloom.config.drivers import dummy_options, native_options
from inferloom.config.schema import ModelConfig
from inferloom.errors import InferloomError
from inferloom.formats.checkpoint import Checkpoint
from inferloom.formats.footprint import Draft, footprint_of
from inferloom.runners.base import ProgressSink, WeightSource
from inferloom.runners.preparation import draft_of, located, prepare
from inferloom.types import Footprint, LoadProgress

log = logging.getLogger("inferloom.runners")

_MIB = 1 << 20
_UNKNOWN_WORKSPACE = 64 * _MIB
_MOST_KNOWN = 256
_known: dict[
    tuple[str, bytes, int], Footprint
] = {}  # by the files as they were, the configuration, and the bytes for pages
_TEXTS = frozenset({".json", ".jinja", ".txt", ".model"})


class Files(msgspec.Struct, frozen=True):
    """What a worker is started with. A dummy without a source has no checkpoint."""

    checkpoint: Checkpoint | None
    draft: tuple[ModelConfig, Checkpoint] | None
    pack_secs: float = 0.0  # that making them ready took: fetching, converting, packing

    def fingerprint(self) -> str | None:
        """Of the files' names, sizes and times: another one where a file was written anew. Looks at the disk."""
        found = [one for one in (self.checkpoint, self.draft[1] if self.draft else None) if one is not None]
        return "".join(map(_fingerprint, found)) or None


async def files_of(
    source: WeightSource, draft: ModelConfig | None, progress: ProgressSink | None, *, fetch: bool = True
) -> Files | None:
    """What is not ready on this machine is fetched, converted and packed; without `fetch` it is None."""
    if fetch and source.source and progress is not None:
        progress(LoadProgress("locate"))
    checkpoint = await located(source) if source.source else None
    drafting = await draft_of(draft, progress=None, fetch=False)
    begun = time.monotonic()
    if source.source and checkpoint is None:
        if not fetch:
            return None
        checkpoint = await prepare(source, progress=progress)
    if draft is not None and draft.weights is not None and drafting is None:
        if not fetch:
            return None
        drafting = await draft_of(draft, progress=progress)
    return Files(checkpoint, drafting, time.monotonic() - begun)


async def footprint_and_fingerprint(
    model: ModelConfig, files: Files, *, most_kv: int
) -> tuple[Footprint, str | None]:
    return await asyncio.to_thread(_footprint_and_fingerprint, model, files, most_kv)


def _footprint_and_fingerprint(
    model: ModelConfig, files: Files, most_kv: int
) -> tuple[Footprint, str | None]:
    # the fingerprint first: of files that change in between, the older one
    fingerprint = files.fingerprint()
    if fingerprint is None:
        return model_footprint(model, files, most_kv=most_kv), None
    key = (fingerprint, msgspec.json.encode(model), most_kv)
    found = _known.get(key)
    if found is None:
        found = model_footprint(model, files, most_kv=most_kv)
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known[key] = found
    return found, fingerprint


def model_footprint(model: ModelConfig, files: Files, *, most_kv: int) -> Footprint:
    """`most_kv`: bytes that pages of keys and values are given at most. Blocks for a few milliseconds.

    A checkpoint that is damaged has the size of its files: its worker will say what is wrong with it.
    """
    if model.driver.type == "dummy":
        return _scripted(model)
    assert files.checkpoint is not None
    try:
        found = _native(model, files.checkpoint, files.draft)
    except (InferloomError, OSError) as error:
        log.debug("the footprint of %s is not known: %s", model.name, error)
        weights = sum(Path(name).stat().st_size for name in files.checkpoint.weights if Path(name).exists())
        return Footprint(
            weights=weights, kv_page=0, kv_pages=0, kv_least=0, workspace=_UNKNOWN_WORKSPACE, idle=0
        )
    if not found.kv_page:
        return found
    pages = max(found.kv_least, min(found.kv_pages, most_kv // found.kv_page))
    return msgspec.structs.replace(found, kv_pages=pages)


def _native(
    model: ModelConfig, checkpoint: Checkpoint, draft: tuple[ModelConfig, Checkpoint] | None
) -> Footprint:
    options = native_options(model.driver)
    return footprint_of(
        checkpoint,
        quantization=model.quantization,
        dtype=model.dtype,
        activation_dtype=model.driver.activation_dtype,
        kv_dtype=options.kv_dtype,
        device=model.driver.device[0],
        max_model_len=model.max_model_len,
        max_batch_size=options.max_batch_size,
        max_batch_tokens=options.max_batch_tokens,
        batch_policy=model.scheduler.batch_policy,
        native=_has_extension(),
        draft=None
        if draft is None
        else Draft(
            draft[1],
            quantization=draft[0].quantization,
            dtype=draft[0].dtype,
            kv_dtype=native_options(draft[0].driver).kv_dtype,
        ),
    )


def _scripted(model: ModelConfig) -> Footprint:
    options = dummy_options(model.driver)
    return Footprint(
        weights=options.weights_mb * _MIB,
        kv_page=_MIB if options.kv_mb else 0,
        kv_pages=options.kv_mb,
        kv_least=options.kv_mb if options.kv_least_mb is None else min(options.kv_mb, options.kv_least_mb),
        workspace=options.workspace_mb * _MIB,
        idle=options.workspace_mb * _MIB,
    )


@functools.cache
def _has_extension() -> bool:
    """Whether workers will have the compiled operators, told without loading them here."""
    return importlib.util.find_spec("inferloom.kernels.native._native") is not None


def _fingerprint(checkpoint: Checkpoint) -> str:
    files = {Path(name) for name in checkpoint.weights}
    for folder in {checkpoint.folder, checkpoint.tokenizer_folder or checkpoint.folder}:
        files.update(one for one in Path(folder).iterdir() if one.suffix in _TEXTS)
    digest = hashlib.blake2b(repr(checkpoint).encode(), digest_size=16)
    for file in sorted(files):
        status = file.stat()
        digest.update(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ino}\n".encode())
    return digest.hexdigest()
