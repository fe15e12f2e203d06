"""Grammars: compiled off the step loop, advanced token by token, turned into masks over the vocabulary."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import llguidance
import numpy as np
import torch
from numpy.typing import NDArray

from inferloom.engine.messages import GrammarSpec

COMPILE_SECONDS = 2.0
COMPILE_AT_ONCE = 2
COMPILED_KEPT = 64  # pristine matchers, least recently used first to go


class GrammarError(Exception):
    """A grammar that cannot be used; the text is for the user."""


class Matcher:
    """Where one choice stands in its grammar."""

    def __init__(self, inner: llguidance.LLMatcher, *, ends: frozenset[int], words: int) -> None:
        self.inner = inner
        self.words = words  # of 32 bits, of a mask
        self.ends = ends  # the end tokens that stand in the grammar's own masks

    def copy(self) -> Matcher:
        return Matcher(self.inner.deep_copy(), ends=self.ends, words=self.words)

    def ends_with(self, token: int, stops: frozenset[int]) -> bool:
        """Whether `token`, which the mask allowed, ends the choice: an end token, or one of the request's stop tokens
        where the grammar can end. Elsewhere a stop token is text like any other."""
        return token in self.ends or (token in stops and self.inner.is_accepting())

    def advance(self, token: int) -> bool:
        """Consume a token; False if the grammar does not allow it (or ran into a limit)."""
        return bool(self.inner.consume_token(token))

    def forced(self) -> list[int]:
        """Tokens of the text that must come next; empty where the grammar leaves a choice."""
        return list(self.inner.compute_ff_tokens())

    def count_allowed(self, tokens: list[int]) -> int:
        """How many of `tokens` the grammar would take, one after the other, from where it stands."""
        return int(self.inner.validate_tokens(tokens))

    @property
    def complete(self) -> bool:
        """Nothing can follow but the end."""
        return bool(self.inner.is_stopped())

    @property
    def error(self) -> str:
        return str(self.inner.get_error())


class Masker:
    """Masks of several matchers at once, on llguidance's own threads."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._executor: llguidance.LLExecutor | None = None

    def allowed(self, matchers: list[Matcher], stops: list[frozenset[int]]) -> torch.Tensor:
        """bool [len(matchers), vocab]: what may come next; `stops[i]` too where matcher i can end.

        A matcher in error allows nothing. The same matcher may stand in the list several times.
        """
        distinct = list(dict.fromkeys(matchers))
        places = {matcher: place for place, matcher in enumerate(distinct)}
        bits: NDArray[np.int32] = np.zeros((len(distinct), distinct[0].words), dtype=np.int32)
        if len(distinct) == 1:
            distinct[0].inner.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
        else:
            if self._executor is None:
                self._executor = llguidance.LLExecutor()
            rows = [(matcher.inner, row) for row, matcher in enumerate(distinct)]
            self._executor.unsafe_compute_mask_ptr(rows, bits.ctypes.data, bits.shape[1] * 4, len(distinct))
        flags = np.zeros((len(matchers), self._vocab_size), dtype=bool)
        unpacked = self._unpack(bits)
        for row, (matcher, extra) in enumerate(zip(matchers, stops, strict=True)):
            if matcher.inner.is_error():
                continue
            flags[row, : unpacked.shape[1]] = unpacked[places[matcher]]
            if extra and matcher.inner.is_accepting():
                flags[row, list(extra)] = True
        return torch.from_numpy(flags)

    def allowed_along(self, matcher: Matcher, stops: frozenset[int], draft: list[int]) -> torch.Tensor:
        """bool [1 + len(draft), vocab]: what may come next, then after each token of `draft`, which the grammar takes.

        The matcher stays where it was.
        """
        flags = np.zeros((1 + len(draft), self._vocab_size), dtype=bool)
        bits: NDArray[np.int32] = np.zeros((1, matcher.words), dtype=np.int32)
        inner, consumed = matcher.inner, 0
        for row in range(1 + len(draft)):
            if row:
                if not inner.consume_token(draft[row - 1]):
                    break
                consumed += 1
            if inner.is_error() or inner.is_stopped():
                break  # no token follows, and nobody looks at these rows
            inner.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
            unpacked = self._unpack(bits)[0]
            flags[row, : len(unpacked)] = unpacked
            if stops and inner.is_accepting():
                flags[row, list(stops)] = True
        if consumed:
            inner.rollback(consumed)
        return torch.from_numpy(flags)

    def _unpack(self, bits: NDArray[np.int32]) -> NDArray[np.uint8]:
        return np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little")[:, : self._vocab_size]


@dataclass(eq=False, slots=True)
class _Job:
    owners: list[int]
    spec: GrammarSpec
    started: float | None = None  # set by the thread, once the tokenizer is ready
    result: Matcher | GrammarError | None = None


@dataclass(slots=True)
class Compiled:
    """An answer of the compiler, for whoever asked."""

    owner: int
    result: Matcher | GrammarError


@dataclass(slots=True)
class _Tokenizer:
    """llguidance's view of the tokenizer, made when the first grammar asks for it."""

    read: Callable[[], str]
    vocab_size: int
    ends: frozenset[int]
    lock: threading.Lock = field(default_factory=threading.Lock)
    made: llguidance.LLTokenizer | None = None

    def get(self) -> llguidance.LLTokenizer:
        """Raises `ValueError` for a text that is not a tokenizer.json.

        llguidance holds the interpreter's lock while it works on a vocabulary (0.25 s for 50,000 tokens), and the
        step loop waits. So it gets its slices in a second call: two shorter pauses, once in a worker's life. The
        merges it does need: by them it knows in which tokens a text that the grammar forces is written. Without,
        it forces single characters: three times the steps, and a text such as the model has never seen.
        """
        with self.lock:
            if self.made is None:
                self.made = self._make(self.read()).with_slices(llguidance.LLTokenizer.general_slices())
            return self.made

    def _make(self, text: str) -> llguidance.LLTokenizer:
        ends = sorted(self.ends) or None
        try:
            return llguidance.LLTokenizer(text, n_vocab=self.vocab_size, eos_token=ends, slices=[])
        except ValueError as error:
            if "vocab size too small" not in str(error):
                raise
            # More tokens than the model has logits for: the rest of the mask is cut off.
            return llguidance.LLTokenizer(text, eos_token=ends, slices=[])


class Compiler:
    """Compiles grammars in threads: at most two at once, two seconds each, within llguidance's own limits.

    Only the engine's thread calls its methods; compiling threads hand results over through a deque and `wake`.
    A thread that overruns is left to itself (it is a daemon and llguidance's limits end it): its request is refused.
    """

    def __init__(
        self,
        tokenizer_json: Callable[[], str],
        *,
        vocab_size: int,
        ends: frozenset[int],
        wake: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        seconds: float = COMPILE_SECONDS,
    ) -> None:
        self._tokenizer = _Tokenizer(tokenizer_json, vocab_size, ends)
        self._ends = ends
        self._wake = wake
        self._clock = clock
        self._seconds = seconds
        self._queue: deque[_Job] = deque()
        self._active: list[_Job] = []
        self._finished: deque[_Job] = deque()
        self._cached: OrderedDict[GrammarSpec, Matcher] = OrderedDict()

    @property
    def has_results(self) -> bool:
        return bool(self._finished)

    @property
    def deadline(self) -> float | None:
        """When (of `clock`) `collect` should be called at the latest, even if no thread finishes."""
        if not self._active:
            return None
        return (
            min(self._clock() if job.started is None else job.started for job in self._active) + self._seconds
        )

    def compile(self, owner: int, spec: GrammarSpec) -> Matcher | None:
        """The matcher, if the grammar is known; otherwise `collect` brings the answer for `owner`."""
        known = self._cached.get(spec)
        if known is not None:
            self._cached.move_to_end(spec)
            return known.copy()
        for job in (*self._queue, *self._active):
            if job.spec == spec:
                job.owners.append(owner)
                return None
        self._queue.append(_Job([owner], spec))
        self._start()
        return None

    def collect(self) -> Iterable[Compiled]:
        """What was finished, or given up, since the last call."""
        answers: list[Compiled] = []
        while self._finished:
            job = self._finished.popleft()
            if job in self._active:  # otherwise it was given up
                self._active.remove(job)
                assert job.result is not None
                if isinstance(job.result, Matcher):
                    self._remember(job.spec, job.result)
                answers += self._answers(job, job.result)
        now = self._clock()
        for job in [j for j in self._active if j.started is not None and now - j.started >= self._seconds]:
            self._active.remove(job)
            late = GrammarError(
                f"the grammar took longer than {self._seconds:g} s to compile; make it simpler"
            )
            answers += self._answers(job, late)
        self._start()
        return answers

    def _answers(self, job: _Job, result: Matcher | GrammarError) -> list[Compiled]:
        return [
            Compiled(owner, result.copy() if isinstance(result, Matcher) else result) for owner in job.owners
        ]

    def _remember(self, spec: GrammarSpec, matcher: Matcher) -> None:
        self._cached[spec] = matcher
        if len(self._cached) > COMPILED_KEPT:
            self._cached.popitem(last=False)

    def _start(self) -> None:
        while self._queue and len(self._active) < COMPILE_AT_ONCE:
            job = self._queue.popleft()
            self._active.append(job)
            threading.Thread(target=self._run, args=(job,), name="grammar", daemon=True).start()

    def _run(self, job: _Job) -> None:
        job.result = GrammarError(
            "the grammar compiler failed"
        )  # stands if it panics, which is no `Exception`
        try:
            job.result = self._compile(job)
        except (ValueError, RuntimeError, TypeError) as error:
            job.result = GrammarError(str(error))
        finally:
            self._finished.append(job)
            self._wake()

    def _compile(self, job: _Job) -> Matcher | GrammarError:
        tokenizer = self._tokenizer.get()
        job.started = self._clock()
        limits = llguidance.LLParserLimits(verbose_errors=False)
        inner = llguidance.LLMatcher(tokenizer, grammar_text(job.spec), log_level=0, limits=limits)
        if inner.is_error():
            return GrammarError(inner.get_error())
        ends = self._ends | frozenset(tokenizer.eos_tokens)
        return Matcher(inner, ends=ends, words=-(-tokenizer.vocab_size // 32))


def grammar_text(spec: GrammarSpec) -> str:
    """llguidance's own form of a grammar. Raises `ValueError` with its message.

    How JSON is spaced is the schema's own business (`x-guidance`).
    """
    if spec.kind == "json_schema":
        return str(llguidance.LLMatcher.grammar_from_json_schema(spec.value))
    if spec.kind == "regex":
        return str(llguidance.LLMatcher.grammar_from_regex(spec.value))
    return str(llguidance.LLMatcher.grammar_from_lark(spec.value))
