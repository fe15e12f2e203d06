"""A model's KV pages beyond one worker: how many it has, and the cached prefixes that outlive it, kept under a name made of
whatever decides the bits of its keys and values."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

import inferloom
from inferloom.config.drivers import native_options
from inferloom.config.schema import ModelConfig
from inferloom.errors import InferloomError
from inferloom.formats import content, entries
from inferloom.formats.checkpoint import Checkpoint
from inferloom.formats.footprint import PAGE_TOKENS
from inferloom.types import ModelCard
from inferloom.worker.kv_store import Kept, KvStore
from inferloom.worker.messages.replies import Resized, Spilled, Stats
from inferloom.worker.messages.requests import GetStats, Spill
from inferloom.worker.spilled import file_bytes

log = logging.getLogger("inferloom.runners")

# Raise it when a model's keys and values come out differently.
VERSION = 1
SPILL_SECS = 10.0  # that a worker may take for its file


class Files(NamedTuple):
    """What a worker computes keys and values with: its model's, and those of the one that drafts for it."""

    checkpoint: Checkpoint
    draft: tuple[ModelConfig, Checkpoint] | None


class KeptPages:
    """One model's cached prefixes in the store, if there is one.

    Nothing waits for the hash of a checkpoint: a thread that runs when nobody else wants the processor makes it while the
    model serves (`learn`). A model that goes before that leaves nothing.
    """

    def __init__(self, model: ModelConfig, store: KvStore | None) -> None:
        self._model = model
        caches = model.driver.type == "native" and native_options(model.driver).prefix_cache
        self._store = store if caches else None
        self._files: Files | None = None  # of the worker that was started last
        self._learning: threading.Thread | None = None

    async def found(
        self, checkpoint: Checkpoint | None, draft: tuple[ModelConfig, Checkpoint] | None = None
    ) -> dict[str, str]:
        """What the next worker's job says of kept pages: `spill`, the file, and `spill_key`, their owner. `draft`: the model
        that drafts, whose keys and values are in the same pages."""
        self._files = None if checkpoint is None else Files(checkpoint, draft)
        if self._store is None or self._files is None:
            return {}
        return await asyncio.to_thread(self._find, self._store, self._files)

    def _find(self, store: KvStore, files: Files) -> dict[str, str]:
        name = name_of(self._model, *files)  # content that was never hashed was never kept either
        path = store.find(name) if name is not None else None
        return {"spill": str(path), "spill_key": name} if name is not None and path is not None else {}

    def learn(self) -> None:
        """Have the checkpoint hashed, once in its life."""
        busy = self._learning is not None and self._learning.is_alive()
        if self._store is not None and self._files is not None and not busy:
            self._learning = threading.Thread(target=_learn, args=(self._files,), daemon=True)
            self._learning.start()

    async def keep(self, card: ModelCard, ask: Callable[..., Awaitable[Any]]) -> int:
        """Have the worker write its pages: `ask` is `Questions.ask` for it. Bytes that are kept. Never fails: what cannot be
        kept is computed again."""
        store, files = self._store, self._files
        if store is None or files is None or not card.kv_pages:
            return 0
        name = await asyncio.to_thread(name_of, self._model, *files)
        if name is None:
            return 0
        try:
            stats: Stats = await ask(GetStats, deadline=time.monotonic() + SPILL_SECS)
            if not stats.pages_cached:
                return 0
            wanted = file_bytes(stats.pages_cached, card.kv_bytes // card.kv_pages)
            return await self._write(store.keep(name, wanted=wanted), name, ask)
        except InferloomError as error:
            log.warning("cached prefixes of %s are not kept: %s", self._model.name, error.message)
            return 0

    async def _write(
        self, place: AbstractContextManager[Kept | None], name: str, ask: Callable[..., Awaitable[Any]]
    ) -> int:
        kept = await asyncio.to_thread(place.__enter__)
        try:
            if kept is None:
                return 0
            answer: Spilled = await ask(
                lambda number: Spill(number, str(kept.path), name, kept.max_bytes),
                deadline=time.monotonic() + SPILL_SECS,
            )
            return answer.bytes
        finally:
            await asyncio.to_thread(place.__exit__, None, None, None)


def _learn(files: Files) -> None:
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))  # this thread alone (Linux)
    for checkpoint in (files.checkpoint, *(files.draft or ())[1:]):
        with contextlib.suppress(OSError):  # a file that went
            if _digest(checkpoint) is None:
                content.digest([Path(name) for name in checkpoint.weights], lambda progress: None)


def with_pages(card: ModelCard, resized: Resized) -> ModelCard:
    """What a model says of itself with fewer or more pages: its context may be shorter, or be what it was again."""
    if not card.kv_pages:
        return card
    return msgspec.structs.replace(
        card,
        kv_pages=resized.pages,
        kv_bytes=card.kv_bytes // card.kv_pages * resized.pages,
        max_model_len=resized.max_model_len,
    )


def name_of(
    model: ModelConfig, checkpoint: Checkpoint, draft: tuple[ModelConfig, Checkpoint] | None = None
) -> str | None:
    """The name, or None while the files' content is not known. Looks at the disk, for a few milliseconds."""
    try:
        computed_with = [_identity(*one) for one in ((model, checkpoint), draft) if one is not None]
    except (OSError, InferloomError) as error:
        log.debug("the content of %s is not known: %s", model.name, error)
        return None
    if None in computed_with:
        return None
    decisive = {
        "code": [VERSION, inferloom.__version__],
        "computed_with": computed_with,
        "activation_dtype": model.driver.activation_dtype,
        "max_model_len": model.max_model_len,  # LongRoPE turns otherwise in long contexts
        "page": PAGE_TOKENS,
    }
    encoded = msgspec.json.encode(decisive, order="sorted")
    return hashlib.sha256(encoded).hexdigest()[:32]


def _identity(model: ModelConfig, checkpoint: Checkpoint) -> list[str] | None:
    """What decides a model's part in the bits; None while the content of its weights is not known."""
    digest = _digest(checkpoint)
    config = (Path(checkpoint.folder) / "config.json").read_bytes()
    if digest is None:
        return None
    kv_dtype = native_options(model.driver).kv_dtype
    return [digest, hashlib.sha256(config).hexdigest(), checkpoint.quantization, model.dtype, kv_dtype]


def _digest(checkpoint: Checkpoint) -> str | None:
    files = [Path(name) for name in checkpoint.weights]
    found = []
    for file in files:
        manifest = entries.manifest_of(file.parent)
        if manifest is not None:  # an entry of the cache: what it was made from, how, and by which version
            found.append(f"{manifest.version}-{manifest.scheme}-{manifest.sha256}")
    if len(found) == len(files):
        return "+".join(found)
    return content.known(files)
