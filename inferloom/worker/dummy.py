"""The dummy driver: scripted answers at a set rate, one token per sequence and step as a real engine would.

It is for tests and for benchmarks of everything around an engine, so it has an engine's manners: token limits, stop
tokens, choices, cancellation and rejections.
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass, field
from hashlib import blake2b

import msgspec

from inferloom.engine.messages import Logprob
from inferloom.errors import LoadFailed
from inferloom.types import FinishReason, ModelCard
from inferloom.worker.hosts import Report
from inferloom.worker.messages.job import WorkerJob
from inferloom.worker.messages.replies import (
    Embedded,
    FromWorker,
    Rejected,
    Resized,
    SequenceStep,
    Spilled,
    Stats,
    Step,
)
from inferloom.worker.messages.requests import Cancel, Embed, Generate, Resize, Spill

MAX_MODEL_LEN = 32768  # where the configuration names none
LOAD_TICK = 0.02  # seconds between two reports of a slow load
LOGPROB = -0.1  # of every token: there is no distribution behind them


class DummyScript(msgspec.Struct, frozen=True, kw_only=True):
    """The job's options: the driver's own, and the answer in tokens."""

    tokens: tuple[int, ...] = (0,)
    end_token: int | None = None  # the answer ends with it, unless the request goes on regardless
    vocab_size: int = 256
    has_chat_template: bool = True
    tokens_per_second: float = 0.0  # of one sequence; 0: no limit
    load_secs: float = 0.0
    fail_load: str | None = None
    kind: str = "generate"
    dimensions: int = 384
    weights_mb: int = 0  # said, not had
    kv_mb: int = 0  # said, not had: pages of 1 MiB
    kv_least_mb: int | None = None
    kv_used_mb: int = 0  # of them, by each sequence in progress
    workspace_mb: int = 0  # really allocated


@dataclass(slots=True)
class _Sequence:
    request: Generate
    choice: int
    started: float
    sent: int = 0
    prefilled: bool = False


@dataclass(slots=True)
class _Totals:
    prompt: int = 0
    generated: int = 0
    steps: int = 0


@dataclass
class DummyHost:
    """See the module. Loading takes `load_secs` and may be told to fail."""

    job: WorkerJob
    report: Report
    stages: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.script = script = msgspec.convert(self.job.options, DummyScript)
        begun = time.monotonic()
        while (done := time.monotonic() - begun) < script.load_secs:
            self.report("load", done / script.load_secs)
            time.sleep(min(LOAD_TICK, script.load_secs - done))
        if script.fail_load is not None:
            raise LoadFailed(script.fail_load)
        self._workspace = b"\x01" * (script.workspace_mb << 20)  # written, so that the pages are there
        self.stages["map"] = time.monotonic() - begun
        pages = min(script.kv_mb, self.job.kv_budget_bytes >> 20)
        self.card = ModelCard(
            kind="embed" if script.kind == "embed" else "generate",
            architecture="Dummy",
            parameters=0,
            format="dummy",
            dtype="none",
            max_model_len=self.job.max_model_len or MAX_MODEL_LEN,
            vocab_size=script.vocab_size,
            dimensions=script.dimensions if script.kind == "embed" else 0,
            has_chat_template=script.has_chat_template,
            weight_bytes=script.weights_mb << 20,
            kv_bytes=pages << 20,
            kv_pages=pages,
        )
        self._wanted = self._told = pages
        self._sequences: dict[tuple[int, int], _Sequence] = {}
        self._embeds: list[Embed] = []
        self._rejected: list[FromWorker] = []
        self._totals = _Totals()

    @property
    def has_work(self) -> bool:
        return bool(self._sequences or self._embeds or self._rejected) or self._pages() != self._told

    @property
    def pause(self) -> float:
        rate = self.script.tokens_per_second
        if not rate or not self._sequences:
            return 0.0
        due = min(sequence.started + (sequence.sent + 1) / rate for sequence in self._sequences.values())
        return max(0.0, due - time.monotonic())

    def generate(self, request: Generate) -> None:
        if request.grammar is not None:
            self._rejected.append(
                Rejected(
                    id=request.id,
                    kind="unsupported",
                    message="constrained output is not supported: the dummy driver's answers are scripted",
                )
            )
            return
        self._totals.prompt += len(request.prompt)
        now = time.monotonic()
        for choice in range(request.n):
            self._sequences[request.id, choice] = _Sequence(request, choice, now)

    def cancel(self, request: Cancel) -> None:
        self._embeds = [embed for embed in self._embeds if embed.id != request.id]
        for key in list(self._sequences):
            if key[0] == request.id and request.choice in (-1, key[1]):
                del self._sequences[key]

    def embed(self, request: Embed) -> None:
        self._embeds.append(request)

    def step(self) -> list[FromWorker]:
        replies, self._rejected = self._rejected, []
        for embed in self._embeds:
            replies.append(self._embedded(embed))
        self._embeds.clear()
        rate = self.script.tokens_per_second
        now = time.monotonic() if rate else 0.0
        steps: list[SequenceStep] = []
        for key, sequence in list(self._sequences.items()):
            if rate and now < sequence.started + (sequence.sent + 1) / rate:
                continue
            step = self._next(sequence)
            steps.append(step)
            if step.finish is not None:
                del self._sequences[key]
        if steps:
            self._totals.steps += 1
            replies.append(Step(steps))
        if self._pages() != self._told:
            replies.append(self._resized(0))
        return replies

    def flush(self) -> None:
        """There is no cache."""

    def end(self) -> None:
        """There is no model."""

    def resize(self, request: Resize) -> Resized:
        """Pages are but said, as `kv_mb` is: any number is had at once, unless requests use more."""
        self._wanted = max(1, request.pages)
        return self._resized(request.id)

    def _pages(self) -> int:
        used = self.script.kv_used_mb * len(self._sequences)
        return max(self._wanted, min(self._told, used))

    def _resized(self, number: int) -> Resized:
        self._told = self._pages()
        return Resized(id=number, pages=self._told, max_model_len=self.card.max_model_len)

    def spill(self, request: Spill) -> Spilled:
        """There is nothing to keep."""
        return Spilled(id=request.id, pages=0, bytes=0)

    def stats(self) -> Stats:
        return Stats(
            id=0,
            running=len(self._sequences),
            prompt_tokens=self._totals.prompt,
            prompt_tokens_computed=self._totals.prompt,
            generated_tokens=self._totals.generated,
            steps=self._totals.steps,
        )

    def _next(self, sequence: _Sequence) -> SequenceStep:
        request, script = sequence.request, self.script
        at = sequence.sent
        tokens: list[int] = []
        finish: FinishReason | None = None
        if at >= request.max_tokens:  # of 0: only the prompt was asked about
            finish = "length"
        else:
            lap = at % (len(script.tokens) + (script.end_token is not None))
            token = script.tokens[lap] if lap < len(script.tokens) else script.end_token
            assert token is not None
            sequence.sent = at + 1
            if token in request.stop_token_ids:
                finish = "stop"
            else:
                tokens.append(token)
                self._totals.generated += 1
                if sequence.sent >= request.max_tokens:
                    finish = "length"
        step = SequenceStep(request.id, sequence.choice, tokens, finish)
        if request.logprobs >= 0:
            step.logprobs = [self._logprob(token, request.logprobs) for token in tokens]
        if request.prompt_logprobs and not sequence.prefilled:
            best = max(0, request.logprobs)
            step.prompt_logprobs = [(None, [])]
            step.prompt_logprobs += [self._logprob(token, best) for token in request.prompt[1:]]
        sequence.prefilled = True
        return step

    def _logprob(self, token: int, best: int) -> Logprob:
        others = (other for other in range(best + 1) if other != token)
        ranked = [(token, LOGPROB), *((other, LOGPROB - 3.0) for other in others)]
        return LOGPROB, ranked[:best]

    def _embedded(self, request: Embed) -> Embedded:
        rows = b"".join(_unit_vector(prompt, self.script.dimensions) for prompt in request.prompts)
        return Embedded(id=request.id, dimensions=self.script.dimensions, data=rows)


def _unit_vector(tokens: list[int], dimensions: int) -> bytes:
    """A vector of length 1 that depends on the tokens alone: float32, little-endian."""
    seed = struct.pack(f"<{len(tokens)}q", *tokens)
    blocks = (
        blake2b(seed + block.to_bytes(4, "little"), digest_size=64).digest()
        for block in range(-(-dimensions // 16))
    )
    values = [value / 2**31 - 1.0 for block in blocks for value in struct.unpack("<16I", block)][:dimensions]
    norm = sum(value * value for value in values) ** 0.5
    return struct.pack(f"<{dimensions}f", *(value / norm for value in values))
