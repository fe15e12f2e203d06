"""Driving an engine to the end, the way a worker does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from inferloom.engine.engine import Engine
from inferloom.engine.messages import Generate, Logprob, SequenceStep


@dataclass
class Answer:
    """Everything one choice was sent."""

    tokens: list[int] = field(default_factory=list)
    finish: str | None = None
    logprobs: list[Logprob] = field(default_factory=list)
    prompt_logprobs: list[Logprob] | None = None
    cached_tokens: int = 0
    steps: int = 0

    def add(self, step: SequenceStep) -> None:
        assert self.finish is None, "a step after the last one"
        if self.steps == 0:
            self.prompt_logprobs, self.cached_tokens = step.prompt_logprobs, step.cached_tokens
        else:
            assert step.prompt_logprobs is None
            assert not step.cached_tokens
        self.steps += 1
        self.tokens += step.tokens
        self.finish = step.finish
        self.logprobs += step.logprobs or []


Answers = dict[tuple[int, int], Answer]


def drive(
    engine: Engine,
    requests: Iterable[Generate],
    *,
    wake: threading.Event | None = None,
    between: Callable[[int], None] = lambda step: None,
    limit: int = 100_000,
) -> Answers:
    """Submit everything, step until nothing is left. `between` is called with the number of each step before it."""
    for request in requests:
        engine.submit(request)
    answers: Answers = {}
    for number in range(limit):
        between(number)
        if engine.has_work:
            for step in engine.step():
                answers.setdefault((step.id, step.choice), Answer()).add(step)
        elif engine.unfinished:
            assert wake is not None and wake.wait(30), "nothing to do, nothing to wait for"
            wake.clear()
        else:
            return answers
    raise AssertionError(f"not finished after {limit} steps")


def assert_all_pages_free(engine: Engine) -> None:
    """After a flush, with nothing running."""
    engine.flush()
    stats = engine.stats()
    assert (stats.running, stats.waiting) == (0, 0)
    assert stats.pages_free == stats.pages_total
    assert stats.pages_cached == 0
