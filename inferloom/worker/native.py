"""The native driver in its worker: our engine over a decoder, or an encoder that makes embeddings.

Importing this module imports torch and everything a model needs, and runs none of it: the forkserver does so.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch

from inferloom.engine.engine import Engine
from inferloom.engine.prefix_cache import Content
from inferloom.errors import LoadFailed
from inferloom.formats.checkpoint import Checkpoint
from inferloom.formats.footprint import step_tokens
from inferloom.formats.weights import unmap_pages
from inferloom.kernels.native import library
from inferloom.models.batch import PAGE_SIZE, Embedder, Executor
from inferloom.models.loader import load
from inferloom.text.tokenizer_files import TokenizerFiles
from inferloom.types import ModelCard
from inferloom.worker.embedding import EmbeddingHost
from inferloom.worker.hosts import Host, Report
from inferloom.worker.kv_pool import most_pages, pool_pages
from inferloom.worker.messages.job import WorkerJob
from inferloom.worker.messages.replies import FromWorker, Rejected, Resized, Spilled, Stats, Step
from inferloom.worker.messages.requests import Cancel, Embed, Generate, Resize, Spill
from inferloom.worker.spilled import Foreign, KeptPages, fitting, read, write

log = logging.getLogger("inferloom.worker")

if not library.available():  # loads the extension here, once, and not in every worker
    log.warning(
        "%s; until then every model runs on torch's operators, several times slower", library.reason()
    )

GRAMMAR_PAUSE = 0.002  # seconds between two looks for a grammar that is being compiled in its thread


def load_native(job: WorkerJob, *, report: Report) -> Host:
    """Map the weights of `job` and make what serves them. Raises the errors of `models.loader.load`."""
    if job.checkpoint is None:
        raise LoadFailed("the native driver needs a checkpoint")
    torch.set_num_threads(job.threads or len(os.sched_getaffinity(0)))
    torch.set_grad_enabled(False)
    report("map", None)
    begun = time.monotonic()
    model = load(
        job.checkpoint,
        dtype=job.dtype,
        activation_dtype=job.activation_dtype,
        device=job.device[0],
        max_model_len=job.max_model_len,
        kv_dtype=job.kv_dtype,
    )
    draft = load_draft(job, model) if job.draft is not None and isinstance(model, Executor) else None
    stages = {"map": time.monotonic() - begun}
    if isinstance(model, Embedder):
        return EmbeddingHost(
            lambda prompts: model.embed(prompts).numpy().tobytes(),
            card=model.card,
            stages=stages,
            max_batch_tokens=job.max_batch_tokens,
        )
    report("allocate", None)
    return EngineHost(model, job, job.checkpoint, stages=stages, draft=draft)


def load_draft(job: WorkerJob, model: Executor) -> Executor | None:
    """The model that drafts for `model`, as the job names it. Raises `LoadFailed` where their tokens differ."""
    assert job.draft is not None and job.checkpoint is not None
    draft = load(
        job.draft,
        dtype=job.draft_dtype,
        activation_dtype=job.activation_dtype,
        device=job.device[0],
        kv_dtype=job.draft_kv_dtype,
    )
    if not isinstance(draft, Executor):
        raise LoadFailed(f"{job.draft.name} makes embeddings and cannot draft for {job.model}")
    if tokens_of(job.draft) != tokens_of(job.checkpoint):
        raise LoadFailed(
            f"{job.draft.name} cannot draft for {job.model}: their tokenizers differ; name a smaller model of the same "
            "family"
        )
    return draft


class _Attached(NamedTuple):
    """The file whose pages a worker began with."""

    path: str
    owner: str
    kept: KeptPages


class EngineHost:
    """An engine, as the message loop wants it."""

    def __init__(
        self,
        executor: Executor,
        job: WorkerJob,
        checkpoint: Checkpoint,
        *,
        stages: dict[str, float],
        draft: Executor | None = None,
    ) -> None:
        self.stages = stages
        begun = time.monotonic()
        pages = pool_pages(executor, job, draft=draft)
        tokenizer = tokenizer_json(checkpoint)
        self._engine = Engine(
            executor,
            pages=pages,
            most_pages=most_pages(executor, job, pages, draft=draft),
            least_pages=-(-job.max_model_len // PAGE_SIZE) if job.max_model_len is not None else 1,
            max_batch_tokens=step_tokens(
                job.max_batch_tokens, device=job.device[0], batch_policy=job.batch_policy
            ),
            max_batch_size=job.max_batch_size,
            max_model_len=executor.card.max_model_len,
            batch_policy=job.batch_policy,
            prefix_cache=job.prefix_cache,
            speculative_tokens=job.speculative_tokens,
            draft=draft,
            tokenizer_json=text_of(tokenizer) if tokenizer.is_file() else None,
            eos_token_ids=end_token_ids(checkpoint),
        )
        self.card: ModelCard = msgspec.structs.replace(
            executor.card,
            max_model_len=self._engine.max_model_len,
            kv_pages=pages,
            kv_bytes=pages * (executor.kv_bytes_per_page + (draft.kv_bytes_per_page if draft else 0)),
            page_size=PAGE_SIZE,
        )
        # what computed the pages
        self._computed_by = "; ".join(one.card.executor for one in (executor, draft) if one is not None)
        self._rejected: list[FromWorker] = []
        self._told_pages = pages
        self._attached: _Attached | None = None
        allocated = time.monotonic()
        self._attach(job)
        # no pass is computed before the first request: what is warmed are the prefixes that an earlier worker kept
        stages["allocate"], stages["warm"] = allocated - begun, time.monotonic() - allocated

    @property
    def has_work(self) -> bool:
        untold = self._rejected or self._engine.room.pages != self._told_pages
        return bool(untold) or self._engine.unfinished > 0 or self._engine.has_work

    @property
    def pause(self) -> float:
        # a step of a long prefill brings nothing either, and must be followed by the next
        return 0.0 if self._engine.has_work else GRAMMAR_PAUSE

    def generate(self, request: Generate) -> None:
        self._engine.submit(request)
        self._rejected += self._engine.rejections()

    def cancel(self, request: Cancel) -> None:
        self._engine.cancel(request.id, request.choice)

    def embed(self, request: Embed) -> None:
        self._rejected.append(
            Rejected(
                id=request.id, kind="unsupported", message="this model generates text and makes no embeddings"
            )
        )

    def step(self) -> list[FromWorker]:
        replies, self._rejected = self._rejected, []
        steps = self._engine.step()
        replies += self._engine.rejections()
        if steps:
            replies.append(Step(steps))
        if self._engine.room.pages != self._told_pages:
            replies.append(self._resized(0))
        return replies

    def resize(self, request: Resize) -> Resized:
        self._engine.resize(request.pages)
        return self._resized(request.id)

    def _resized(self, number: int) -> Resized:
        self._told_pages = self._engine.room.pages
        return Resized(id=number, pages=self._told_pages, max_model_len=self._engine.max_model_len)

    def spill(self, request: Spill) -> Spilled:
        room = self._engine.room
        count = fitting(request.max_bytes, room.bytes_per_page)
        pages = room.hottest(count) if count and not self._engine.unfinished else []
        if not pages:
            return Spilled(id=request.id, pages=0, bytes=0)
        try:
            size = self._kept_already(request, pages) or write(
                Path(request.path),
                owner=request.owner,
                executor=self._computed_by,
                page_bytes=room.bytes_per_page,
                pages=pages,
            )
        except OSError as error:
            log.warning("cached prefixes of %s are not kept: %s", self.card.architecture, error)
            return Spilled(id=request.id, pages=0, bytes=0)
        return Spilled(id=request.id, pages=len(pages), bytes=size)

    def _kept_already(self, request: Spill, pages: list[tuple[bytes, Content]]) -> int:
        """Bytes of the file that this worker's first pages came from, once it holds these ones and no others. 0: that cannot be."""
        attached = self._attached
        if attached is None or (attached.path, attached.owner) != (request.path, request.owner):
            return 0
        return attached.kept.update(pages, max_bytes=request.max_bytes) or 0

    def _attach(self, job: WorkerJob) -> None:
        """Bring back what an earlier worker of this model kept. What cannot be used is discarded."""
        if not job.spill:
            return
        path, room = Path(job.spill), self._engine.room
        try:
            kept = read(path, owner=job.spill_key, executor=self._computed_by, page_bytes=room.bytes_per_page)
        except FileNotFoundError:
            return
        except (OSError, Foreign) as error:
            log.warning("the kept prefixes of %s in %s are discarded: %s", job.model, path, error)
            path.unlink(missing_ok=True)
            return
        if room.attach(kept.pages()) == len(kept.keys):
            self._attached = _Attached(job.spill, job.spill_key, kept)

    def flush(self) -> None:
        self._engine.flush()

    def end(self) -> None:
        unmap_pages()

    def stats(self) -> Stats:
        return self._engine.stats()


def tokenizer_json(checkpoint: Checkpoint) -> Path:
    return Path(checkpoint.tokenizer_folder or checkpoint.folder) / "tokenizer.json"


def text_of(path: Path) -> Callable[[], str]:
    """Reads the file once its text is wanted, as megabytes of JSON are not for most models. It is held open until then:
    the text is that of the file which was there at the load."""
    file = path.open(encoding="utf-8")

    def read() -> str:
        file.seek(0)
        return file.read()

    return read


def tokens_of(checkpoint: Checkpoint) -> object:
    """Which text each token id stands for, to be compared; the file's bytes where that is all there is to know."""
    path = tokenizer_json(checkpoint)
    if not path.is_file():
        return None
    parsed = msgspec.json.decode(path.read_bytes())
    return parsed.get("model", {}).get("vocab")


def end_token_ids(checkpoint: Checkpoint) -> frozenset[int]:
    """The tokens that end an answer, as the gateway's tokenizer knows them too."""
    folder = Path(checkpoint.folder)
    tokenizer = Path(checkpoint.tokenizer_folder) if checkpoint.tokenizer_folder else folder
    return TokenizerFiles(tokenizer, model_folder=folder).end_ids()
