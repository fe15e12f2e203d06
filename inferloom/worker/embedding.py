"""An encoder as a worker hosts it: requests gathered into batches, short prompts with short ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from inferloom.formats.weights import unmap_pages
from inferloom.types import ModelCard
from inferloom.worker.messages.replies import Embedded, FromWorker, Rejected, Resized, Spilled, Stats
from inferloom.worker.messages.requests import Cancel, Embed, Generate, Resize, Spill


@dataclass(slots=True)
class _Pending:
    request: Embed
    rows: list[bytes | None]
    left: int


@dataclass
class EmbeddingHost:
    """`encode` turns prompts into float32 rows, one after the other. A step encodes one batch of at most
    `max_batch_tokens` padded tokens, so a cancellation waits for one batch only."""

    encode: Callable[[list[list[int]]], bytes]
    card: ModelCard
    stages: dict[str, float]
    max_batch_tokens: int
    _pending: dict[int, _Pending] = field(default_factory=dict)
    _queue: list[tuple[int, int]] = field(default_factory=list)  # (request, prompt), longest last
    _replies: list[FromWorker] = field(default_factory=list)
    _prompt_tokens: int = 0
    _steps: int = 0

    @property
    def has_work(self) -> bool:
        return bool(self._queue or self._replies)

    @property
    def pause(self) -> float:
        return 0.0

    def generate(self, request: Generate) -> None:
        self._replies.append(
            Rejected(
                id=request.id, kind="unsupported", message="this model makes embeddings and generates no text"
            )
        )

    def cancel(self, request: Cancel) -> None:
        if self._pending.pop(request.id, None) is not None:
            self._queue = [place for place in self._queue if place[0] != request.id]

    def embed(self, request: Embed) -> None:
        if not request.prompts:
            self._replies.append(Embedded(id=request.id, dimensions=self.card.dimensions, data=b""))
            return
        if (unusable := self._unusable(request)) is not None:
            self._replies.append(Rejected(id=request.id, kind="invalid_request", message=unusable))
            return
        self._pending[request.id] = _Pending(request, [None] * len(request.prompts), len(request.prompts))
        self._queue += [(request.id, number) for number in range(len(request.prompts))]
        self._queue.sort(key=self._length)

    def step(self) -> list[FromWorker]:
        replies, self._replies = self._replies, []
        batch = self._next_batch()
        if batch:
            self._steps += 1
            data = self.encode([self._prompt(place) for place in batch])
            size = len(data) // len(batch)
            for row, (number, position) in enumerate(batch):
                pending = self._pending[number]
                pending.rows[position] = data[row * size : (row + 1) * size]
                pending.left -= 1
                self._prompt_tokens += len(pending.request.prompts[position])
                if not pending.left:
                    del self._pending[number]
                    rows = b"".join(row for row in pending.rows if row is not None)
                    replies.append(Embedded(id=number, dimensions=size // 4, data=rows))
        return replies

    def flush(self) -> None:
        """There is no cache."""

    def end(self) -> None:
        unmap_pages()

    def resize(self, request: Resize) -> Resized:
        """There are no pages."""
        return Resized(id=request.id, pages=0, max_model_len=self.card.max_model_len)

    def spill(self, request: Spill) -> Spilled:
        """There is nothing to keep."""
        return Spilled(id=request.id, pages=0, bytes=0)

    def stats(self) -> Stats:
        return Stats(
            id=0,
            running=len(self._pending),
            prompt_tokens=self._prompt_tokens,
            prompt_tokens_computed=self._prompt_tokens,
            steps=self._steps,
        )

    def _next_batch(self) -> list[tuple[int, int]]:
        """The shortest prompts that fit together once padded to the longest of them; at least one."""
        count = 0
        while count < len(self._queue):
            if count and (count + 1) * self._length(self._queue[count]) > self.max_batch_tokens:
                break
            count += 1
        batch, self._queue = self._queue[:count], self._queue[count:]
        return batch

    def _unusable(self, request: Embed) -> str | None:
        """What would fail in the encoder, and everybody's answers with it. (The gateway has better sentences.)"""
        longest, words = self.card.max_model_len, self.card.vocab_size
        for number, prompt in enumerate(request.prompts):
            if not 0 < len(prompt) <= longest:
                return f"input {number} has {len(prompt)} tokens; this model takes 1 to {longest}"
            if min(prompt) < 0 or max(prompt) >= words:
                return f"input {number} has a token id outside of the vocabulary of {words} tokens"
        return None

    def _prompt(self, place: tuple[int, int]) -> list[int]:
        return self._pending[place[0]].request.prompts[place[1]]

    def _length(self, place: tuple[int, int]) -> int:
        return len(self._prompt(place))
