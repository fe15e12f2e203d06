"""One request in progress in a worker: what its choices gain, turned into chunks of its handle."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from inferloom.runners.base import RunHandle
from inferloom.text.answer import AnswerPlan, AnswerReader
from inferloom.text.codec import TextCodec
from inferloom.types import FinishReason, TokenChunk, TokenLogprob, TopLogprob, Usage
from inferloom.worker.messages.replies import Logprob, SequenceStep


class Run:
    """Fed by the worker's socket, from the event loop. `stop_choice` is told of a choice that a stop string ended."""

    __slots__ = (
        "_cached",
        "_codec",
        "_completion",
        "_echo",
        "_live",
        "_readers",
        "_stop_choice",
        "_wants_logprobs",
        "deadline",
        "handle",
        "id",
        "plan",
    )

    def __init__(
        self,
        number: int,
        plan: AnswerPlan,
        codec: TextCodec,
        *,
        n: int,
        echo: bool,
        logprobs: bool,
        on_cancel: Callable[[Run], None],
        stop_choice: Callable[[int, int], None],
    ) -> None:
        self.id = number
        self.plan = plan
        self.handle = RunHandle(lambda: on_cancel(self))
        self.handle.prompt_tokens = len(plan.token_ids)
        self.deadline = math.inf  # time.monotonic(); its runner looks after it
        self._codec = codec
        self._readers: list[AnswerReader | None] = [plan.reader() for _ in range(n)]
        self._live = n
        self._echo: list[bool] | None = [True] * n if echo else None
        self._wants_logprobs = logprobs
        self._completion = 0
        self._cached = 0
        self._stop_choice = stop_choice

    def advance(self, step: SequenceStep) -> bool:
        """Take one choice's step; whether that was the last of the request."""
        choice, tokens, finish = step.choice, step.tokens, step.finish
        reader = self._readers[choice]
        if reader is None:
            return False  # ended by a stop string; this was on its way already
        self._completion += len(tokens)
        if step.cached_tokens:
            self._cached = step.cached_tokens
        chunk = TokenChunk(index=choice, token_ids=tuple(tokens))
        if tokens:
            chunk.text, chunk.reasoning, calls, stopped = reader.push(tokens)
            if calls:
                chunk.tool_calls = tuple(calls)
            if stopped:
                if finish is None:
                    self._stop_choice(self.id, choice)
                finish = "stop"
        if self._wants_logprobs and step.logprobs is not None:
            chunk.logprobs = self._logprobs(tokens, step.logprobs)
        if self._echo is not None and self._echo[choice]:
            self._echo[choice] = False
            self._repeat_prompt(chunk, step)
        if finish is None:
            self.handle.feed(chunk)
            return False
        return self._end_choice(chunk, reader, finish)

    def _end_choice(self, chunk: TokenChunk, reader: AnswerReader, finish: FinishReason) -> bool:
        if reader.stop is None:
            rest = reader.flush(cut=finish != "stop")
            chunk.text += rest.text
            chunk.reasoning += rest.reasoning
            chunk.tool_calls += tuple(rest.tool_calls)
            if rest.stopped:
                finish = "stop"
        if finish == "stop" and reader.called:
            finish = "tool_calls"
        chunk.finish_reason = finish
        self._readers[chunk.index] = None
        self._live -= 1
        if self._live:
            self.handle.feed(chunk)
            return False
        chunk.usage = Usage(
            prompt_tokens=len(self.plan.token_ids),
            completion_tokens=self._completion,
            cached_tokens=self._cached,
        )
        self.handle.feed(chunk)
        self.handle.finish()
        return True

    def _repeat_prompt(self, chunk: TokenChunk, step: SequenceStep) -> None:
        prompt = self.plan.token_ids
        text = self.plan.prompt
        if text is None:
            text = self._codec.decode(prompt, skip_special_tokens=False)
        chunk.text = text + chunk.text
        chunk.token_ids = (*prompt, *chunk.token_ids)
        if step.prompt_logprobs is not None:
            chunk.logprobs = (*self._logprobs(prompt, step.prompt_logprobs), *chunk.logprobs)

    def _logprobs(self, tokens: Sequence[int], values: Sequence[Logprob]) -> tuple[TokenLogprob, ...]:
        text, raw = self._codec.token_text, self._codec.token_bytes
        return tuple(
            TokenLogprob(
                token_id=token,
                token=text(token),
                logprob=logprob,
                bytes=raw(token),
                top=tuple(
                    TopLogprob(token_id=other, token=text(other), logprob=value, bytes=raw(other))
                    for other, value in best
                ),
            )
            for token, (logprob, best) in zip(tokens, values, strict=False)
        )
