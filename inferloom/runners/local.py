"""A model in a worker process of this machine."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from functools import partial

import msgspec

from inferloom.config.schema import ModelConfig
from inferloom.errors import (
    Cancelled,
    InferloomError,
    InvalidRequest,
    LoadFailed,
    WorkerDied,
)
from inferloom.formats.checkpoint import Checkpoint
from inferloom.runners import embedding
from inferloom.runners.base import (
    DeviceContext,
    ModelRunner,
    ProgressSink,
    RunHandle,
    SessionRebuildCause,
    WeightSource,
)
from inferloom.runners.codecs import codec_of
from inferloom.runners.footprints import Files, files_of, footprint_and_fingerprint
from inferloom.runners.jobs import dummy_job, native_job
from inferloom.runners.kept_pages import KeptPages, with_pages
from inferloom.runners.questions import Questions
from inferloom.runners.request import generate, text_length, with_system_prompt
from inferloom.runners.run import Run
from inferloom.runners.runs import Runs
from inferloom.runners.sampling import fresh_seed
from inferloom.text.answer import AnswerPlan
from inferloom.text.codec import TextCodec
from inferloom.types import (
    EmbedBatch,
    EmbedResult,
    ExecuteBatch,
    Footprint,
    LoadProgress,
    LoadReport,
    ModelCard,
    RuntimeKind,
    TransportKind,
)
from inferloom.worker.failures import rebuild
from inferloom.worker.kv_store import KvStore
from inferloom.worker.messages.replies import (
    Embedded,
    Failed,
    FromWorker,
    Progress,
    Ready,
    Rejected,
    Resized,
    Spilled,
    Stats,
    Step,
)
from inferloom.worker.messages.requests import (
    Cancel,
    Embed,
    Flush,
    GetStats,
    Resize,
)
from inferloom.worker.pool import WorkerPool
from inferloom.worker.process import Exit, WorkerProcess

LONG_TEXT = 20_000  # characters; above, tokenizing leaves the event loop for a thread

log = logging.getLogger("inferloom.runners")

_BOOT = os.urandom(8)


class LocalRunner(ModelRunner):
    """Runs requests in one worker. `on_death` is called once if the process ends without having been asked to.
    `kv_budget_bytes`: the most that KV pages may ever take; `grant` says what they take first.
    `draft`: the smaller model whose weights go into the same worker. `kv_store`: where `spill` keeps cached prefixes, and
    loading finds them.
    """

    def __init__(
        self,
        model: ModelConfig,
        pool: WorkerPool,
        *,
        kv_budget_bytes: int = 2 << 30,
        load_timeout: float | None = None,
        on_death: Callable[[InferloomError], None] | None = None,
        draft: ModelConfig | None = None,
        kv_store: KvStore | None = None,
    ) -> None:
        self._model = model
        self._pool = pool
        self._kv_budget = self._kv_most = kv_budget_bytes
        self._kept = KeptPages(model, kv_store)
        self._load_timeout = load_timeout
        self._on_death = on_death
        self._draft = draft
        self._source = WeightSource(
            source=model.weights or "", tokenizer=model.tok_model_id, quantization=model.quantization
        )
        self._files: Files | None = None  # what `footprint` found, until `load_weights` takes it
        self._process: WorkerProcess | None = None
        self._codec: TextCodec | None = None
        self._card: ModelCard | None = None
        self._ready: asyncio.Future[Ready] | None = None
        self._progress: ProgressSink | None = None
        self._reason: InferloomError | None = None  # what the worker said before it ended
        self._runs = Runs(self._expired)
        self._questions = Questions()
        self._ends: frozenset[int] = frozenset()
        self.stats = Stats(0)  # the worker's last report

    # --- what it is -------------------------------------------------------------------------------------------------

    def runtime_kind(self) -> RuntimeKind:
        return RuntimeKind.DUMMY if self._model.driver.type == "dummy" else RuntimeKind.NATIVE

    def transport_kind(self) -> TransportKind:
        cpu = self._model.driver.device[0].startswith("cpu")
        return TransportKind.LOCAL_CPU if cpu else TransportKind.LOCAL_GPU

    def card(self) -> ModelCard | None:
        return self._card

    @property
    def pid(self) -> int | None:
        """Of the worker that lives."""
        process = self._process
        return process.pid if process is not None and process.alive else None

    @property
    def running(self) -> int:
        """Requests in progress."""
        return len(self._runs)

    # --- loading ----------------------------------------------------------------------------------------------------

    async def footprint(
        self, source: WeightSource, progress: ProgressSink | None = None, *, fetch: bool = True
    ) -> Footprint | None:
        self._files = files = await files_of(source, self._draft, progress, fetch=fetch)
        if files is None:
            return None
        footprint, self.fingerprint = await footprint_and_fingerprint(
            msgspec.structs.replace(self._model, quantization=source.quantization),
            files,
            most_kv=self._kv_most,
        )
        return footprint

    def grant(self, kv_bytes: int) -> None:
        self._kv_budget = kv_bytes

    async def load_weights(
        self, ctx: DeviceContext | None, source: WeightSource, progress: ProgressSink | None = None
    ) -> LoadReport:
        """Prepare the source, start the worker, wait until it is ready. An empty source is the dummy's own.

        Raises `LoadFailed` and its kin. When it fails or is cancelled no process is left.
        """
        self._source = source
        begun = time.monotonic()
        files = self._files or await files_of(source, self._draft, progress)
        assert files is not None  # without `fetch=False` they are made ready
        self._files = None
        try:
            async with asyncio.timeout(self._load_timeout):
                ready, codec = await self._start(files, ctx, progress)
        except TimeoutError:
            await self._end_process()
            raise LoadFailed(f"{self._model.name} was not loaded within {self._load_timeout:g} s") from None
        except BaseException:
            await self._end_process()
            raise
        process = self._process
        if process is None or not process.alive:  # after it was ready, while the tokenizer was being read
            raise LoadFailed(self._died().message)
        self._codec = codec
        self._ends = codec.eos_token_ids
        self._card = msgspec.structs.replace(ready.card, has_chat_template=codec.has_chat_template)
        self._kept.learn()
        return LoadReport(
            card=self._card,
            seconds=time.monotonic() - begun,
            stages={"pack": files.pack_secs, **ready.stages},
            pid=process.pid,
        )

    async def rebuild_session(self, cause: SessionRebuildCause) -> None:
        """Another worker for the same source; what runs in the old one ends with an error."""
        await self.close()
        await self.load_weights(None, self._source)

    async def resize_kv(self, pages: int) -> int:
        process = self._serving()[2]
        return int((await self._questions.ask(process, lambda number: Resize(number, pages))).pages)

    async def spill(self) -> int:
        if self._card is None or self._process is None or not self._process.alive or self._runs:
            return 0
        return await self._kept.keep(self._card, partial(self._questions.ask, self._process))

    async def close(self) -> None:
        """End the worker; returns when the process is gone."""
        self._fail_all(Cancelled(f"the model {self._model.name} was unloaded while it was answering"))
        await self._end_process()
        self._card = self._codec = None

    async def _start(
        self,
        files: Files,
        ctx: DeviceContext | None,
        progress: ProgressSink | None,
    ) -> tuple[Ready, TextCodec]:
        loop = asyncio.get_running_loop()
        codec_task = asyncio.create_task(self._load_codec(files.checkpoint))
        self._ready = ready = loop.create_future()
        self._progress, self._reason = progress, None
        try:
            # the dummy's script is tokens, so its codec comes first; any other worker loads beside it
            if self._model.driver.type == "dummy":
                job = dummy_job(self._model, await codec_task, kv_budget_bytes=self._kv_budget)
            else:
                devices = ctx.devices if ctx is not None else tuple(self._model.driver.device)
                job = native_job(
                    self._model,
                    files.checkpoint,
                    devices=devices,
                    kv_budget_bytes=self._kv_budget,
                    kv_most_bytes=self._kv_most,
                    draft=files.draft,
                    **await self._kept.found(files.checkpoint, files.draft),
                )
            begun = time.monotonic()
            self._process = await self._pool.spawn(job, on_message=self._on_message, on_exit=self._on_exit)
            started = time.monotonic() - begun
            done, _ = await asyncio.wait({ready, codec_task}, return_when=asyncio.FIRST_EXCEPTION)
            for one in done:
                one.result()
            told: Ready = ready.result()
            # its own stages may have begun before we were told that it is there
            started = min(started, max(0.0, time.monotonic() - begun - sum(told.stages.values())))
            told = msgspec.structs.replace(told, stages={"start": started, **told.stages})
            return told, codec_task.result()
        finally:
            codec_task.cancel()
            ready.cancel()
            self._ready = self._progress = None

    async def _load_codec(self, checkpoint: Checkpoint | None) -> TextCodec:
        explicit, template = self._model.jinja_explicit, self._model.chat_template
        if checkpoint is None:
            return TextCodec.for_bytes(chat_template=template, jinja_explicit=explicit)
        return await asyncio.to_thread(codec_of, checkpoint, chat_template=template, jinja_explicit=explicit)

    # --- answering --------------------------------------------------------------------------------------------------

    async def execute(self, batch: ExecuteBatch) -> RunHandle:
        codec, card, process = self._serving()
        if card.kind != "generate":
            raise InvalidRequest(
                f"{self._model.name} makes embeddings and generates no text; use /v1/embeddings",
                param="model",
            )
        if batch.token_ids is not None:
            embedding.check_token_ids(batch.token_ids, card.vocab_size, param="prompt")
        if batch.sampling.logit_bias:
            embedding.check_token_ids([*batch.sampling.logit_bias], card.vocab_size, param="logit_bias")
        embedding.check_token_ids(batch.stop_token_ids, card.vocab_size, param="stop")
        batch = with_system_prompt(batch, self._model.system_prompt)
        if text_length(batch) > LONG_TEXT:
            plan = await asyncio.to_thread(AnswerPlan, codec, batch)
        else:
            plan = AnswerPlan(codec, batch)
        number = self._questions.number()
        request = generate(
            batch,
            plan,
            number=number,
            limit=card.max_model_len,
            defaults=codec.generation_defaults,
            ends=self._ends,
            seed=lambda: fresh_seed(self._model.driver.random_seed, _BOOT, number),
        )
        if not process.alive or process is not self._process:  # while a thread was tokenizing
            raise self._died()
        run = Run(
            number,
            plan,
            codec,
            n=batch.n,
            echo=batch.echo,
            logprobs=batch.logprobs is not None,
            on_cancel=self._cancel,
            stop_choice=self._stop_choice,
        )
        process.send(request)
        self._runs.add(run, deadline=batch.deadline)
        return run.handle

    async def embed(self, batch: EmbedBatch) -> EmbedResult:
        codec, card, process = self._serving()
        if card.kind != "embed":
            raise InvalidRequest(
                f"{self._model.name} generates text and makes no embeddings; use /v1/chat/completions",
                param="model",
            )
        if sum(len(one) for one in batch.inputs) > LONG_TEXT:
            prompts = await asyncio.to_thread(embedding.prompts, batch, codec, card)
        else:
            prompts = embedding.prompts(batch, codec, card)
        answer = await self._questions.ask(
            process, lambda number: Embed(number, prompts), deadline=batch.deadline
        )
        return embedding.result(answer, batch, prompts)

    async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        codec, _, _ = self._serving()
        if len(text) > LONG_TEXT:
            return await asyncio.to_thread(codec.encode, text, add_special_tokens=add_special_tokens)
        return codec.encode(text, add_special_tokens=add_special_tokens)

    async def detokenize(self, tokens: list[int], *, skip_special_tokens: bool = True) -> str:
        codec, card, _ = self._serving()
        embedding.check_token_ids(tokens, card.vocab_size, param="tokens")
        if len(tokens) > LONG_TEXT:
            return await asyncio.to_thread(codec.decode, tokens, skip_special_tokens=skip_special_tokens)
        return codec.decode(tokens, skip_special_tokens=skip_special_tokens)

    async def ask_stats(self) -> Stats:
        """The worker's counters, as of its next step."""
        answer: Stats = await self._questions.ask(self._serving()[2], GetStats)
        return answer

    async def flush(self) -> Stats:
        """Drop the prefix cache."""
        answer: Stats = await self._questions.ask(self._serving()[2], Flush)
        return answer

    def _serving(self) -> tuple[TextCodec, ModelCard, WorkerProcess]:
        codec, card, process = self._codec, self._card, self._process
        if codec is None or card is None or process is None or not process.alive:
            raise self._died()
        return codec, card, process

    # --- ends of requests -------------------------------------------------------------------------------------------

    def _cancel(self, run: Run) -> None:
        """The consumer wants no more of it: the worker drops it before its next step."""
        if self._runs.forget(run) and self._process is not None:
            self._process.send(Cancel(run.id))
        run.handle.finish()

    def _expired(self, number: int) -> None:
        if self._process is not None:
            self._process.send(Cancel(number))

    def _stop_choice(self, number: int, choice: int) -> None:
        if self._process is not None:
            self._process.send(Cancel(number, choice))

    def _fail_all(self, error: InferloomError) -> None:
        self._runs.fail_all(error)
        self._questions.fail(error)

    # --- the worker -------------------------------------------------------------------------------------------------

    def _on_message(self, message: FromWorker) -> None:
        if type(message) is Step:
            self._runs.advance(message)
        elif isinstance(message, Stats):
            self.stats = message
            self._questions.answer(message.id, message)
        elif isinstance(message, Embedded | Spilled):
            self._questions.answer(message.id, message)
        elif isinstance(message, Resized):
            self._card = self._card and with_pages(self._card, message)
            self._questions.answer(message.id, message)
            if self.on_resized is not None:
                self.on_resized()
        elif isinstance(message, Rejected):
            self._reject(message)
        elif isinstance(message, Progress):
            if self._progress is not None:
                self._progress(LoadProgress(message.stage, message.fraction))
        elif isinstance(message, Ready):
            if self._ready is not None and not self._ready.done():
                self._ready.set_result(message)
        elif isinstance(message, Failed):
            self._reason = rebuild(message.kind, message.message)

    def _reject(self, message: Rejected) -> None:
        error = rebuild(message.kind, message.message)
        run = self._runs.get(message.id)
        if run is not None:
            self._runs.forget(run)
            run.handle.fail(error)
        self._questions.fail(error, message.id)

    def _on_exit(self, process: WorkerProcess, how: Exit) -> None:
        loading = self._ready
        if loading is None and process is not self._process:
            return  # we ended it
        for line in process.last_words:
            log.error("last words of %s: %s", self._model.name, line)
        if loading is not None:
            if not loading.done():
                loading.set_exception(
                    self._reason or LoadFailed(f"the worker of {self._model.name} died while loading: {how}")
                )
            return
        error = self._died(how)
        self._fail_all(error)
        if self._on_death is not None:
            self._on_death(error)

    def _died(self, how: Exit | None = None) -> WorkerDied:
        if self._reason is not None:
            return WorkerDied(f"the worker of {self._model.name} gave up: {self._reason.message}")
        if how is None and self._process is not None and self._process.exit.done():
            how = self._process.exit.result()
        if how is None:
            return WorkerDied(f"{self._model.name} has no worker; it is not loaded")
        return WorkerDied(f"the worker of {self._model.name} died: {how}")

    async def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            await process.stop()
