"""The engine: requests in, tokens out, one `step` at a time. Synchronous, single-threaded, knows no sockets."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator

import torch

from inferloom.engine.draft_model import ModelSpeculator
from inferloom.engine.draws import Sampled
from inferloom.engine.forward_pass import ForwardPass, ScoredSpan
from inferloom.engine.grammar import Compiler, GrammarError, Masker, Matcher
from inferloom.engine.messages import Generate, Rejected, SequenceStep, Stats
from inferloom.engine.page_room import PageRoom
from inferloom.engine.pages import PagePool
from inferloom.engine.penalties import Penalties
from inferloom.engine.policy import PolicyName, make_policy
from inferloom.engine.prefix_cache import PrefixCache
from inferloom.engine.sampler import logprobs, sample
from inferloom.engine.scheduler import Plan, Scheduler
from inferloom.engine.sequence import Request, Sequence
from inferloom.engine.speculator import LookupSpeculator, Speculator
from inferloom.engine.turns import Turn, mask_of
from inferloom.engine.validation import refusal
from inferloom.models.batch import PAGE_SIZE, Executor
from inferloom.types import FinishReason

_log = logging.getLogger(__name__)

# Logits of a scored prompt (`prompt_logprobs`) are held for a step: rows × vocabulary × 4 bytes stay below this.
_SCORED_BYTES = 64 << 20


class Engine:
    """Continuous batching over one executor.

    `submit` and `cancel` take effect with the next `step`; `step` computes one ragged batch and returns what every
    choice gained; `rejections` returns requests that cannot run. While `has_work` is false a step would do nothing:
    the caller waits for its socket, for `wake` (called from another thread when a grammar is compiled), and until
    `deadline`.
    """

    def __init__(
        self,
        executor: Executor,
        *,
        pages: int,
        most_pages: int | None = None,
        least_pages: int = 1,
        max_batch_tokens: int = 10240,
        max_batch_size: int = 512,
        max_model_len: int | None = None,
        batch_policy: PolicyName = "adaptive",
        prefix_cache: bool = True,
        speculative_tokens: int = 8,
        draft: Executor | None = None,
        tokenizer_json: Callable[[], str] | None = None,
        eos_token_ids: Iterable[int] = (),
        wake: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Allocates `pages` pages of KV (raises `OutOfMemory`), which may become `most_pages` and `least_pages` (`resize`).

        `max_model_len` (default: the executor's card) is cut to what the pages hold; read it back from the
        attribute. `speculative_tokens`: the longest draft, from a sequence's own text or by the model `draft` (a vocabulary
        like the executor's); 0: none, answers are the same. `tokenizer_json` brings the text of tokenizer.json, once the
        first grammar asks for it. `eos_token_ids`: the model's end tokens, with which a grammar ends; other requests bring
        theirs in `stop_token_ids`.
        """
        most_pages = max(pages, most_pages or pages)
        executor.allocate_kv(most_pages)
        self._executor = executor
        self._clock = clock
        self._pool = PagePool(pages, capacity=most_pages)
        self._cache = PrefixCache(self._pool) if prefix_cache else None
        self._policy = make_policy(batch_policy)
        self._scheduler = Scheduler(
            self._pool,
            self._cache,
            self._policy,
            max_batch_tokens=max_batch_tokens,
            max_batch_size=max_batch_size,
            max_logit_rows=max(16, _SCORED_BYTES // (4 * executor.vocab_size)),
            page_size=PAGE_SIZE,
        )
        self._max_batch_tokens = max_batch_tokens
        self._speculator: Speculator | None = None
        if speculative_tokens > 0 and draft is not None:
            self._speculator = ModelSpeculator(
                draft, pages=most_pages, vocab_size=executor.vocab_size, most=speculative_tokens, clock=clock
            )
        elif speculative_tokens > 0:
            self._speculator = LookupSpeculator(most=speculative_tokens)
        self.room = PageRoom(
            self._pool,
            self._cache,
            executor.page_tables(),
            drafting=draft.page_tables() if draft is not None else (),
            longest=max_model_len or executor.card.max_model_len,
            least=least_pages,
        )
        ends = frozenset(eos_token_ids)
        self._masker = Masker(executor.vocab_size)
        self._compiler = (
            Compiler(tokenizer_json, vocab_size=executor.vocab_size, ends=ends, wake=wake, clock=clock)
            if tokenizer_json is not None
            else None
        )
        self._requests: dict[int, Request] = {}
        self._compiling: dict[int, Request] = {}
        self._finished: list[SequenceStep] = []  # known without a forward pass
        self._rejected: list[Rejected] = []
        self._numbers = 0
        self._totals = Stats(0)

    # --- requests ---------------------------------------------------------------------------------------------------

    def submit(self, spec: Generate) -> None:
        """Queue a request. One that can never run shows up in `rejections`."""
        refused = refusal(
            spec,
            max_model_len=self.max_model_len,
            vocab_size=self._executor.vocab_size,
            has_grammars=self._compiler is not None,
        )
        if refused is not None:
            self._rejected.append(refused)
            return
        self._numbers += 1
        self._totals.prompt_tokens += len(spec.prompt)
        request = Request(
            spec=spec,
            arrival=self._totals.steps,
            number=self._numbers,
            # a tokenizer may know more tokens than the model has logits for: those never come
            stops=frozenset(id for id in spec.stop_token_ids if 0 <= id < self._executor.vocab_size),
            live=set(range(spec.n)),
            prompt_logprobs=[(None, [])] if spec.prompt_logprobs else None,
        )
        if spec.max_tokens == 0 and not (spec.prompt_logprobs and len(spec.prompt) > 1):
            self._finished += [self._without_tokens(request, choice) for choice in range(spec.n)]
            return
        self._requests[spec.id] = request
        if spec.grammar is None:
            self._start(request, None)
            return
        assert self._compiler is not None
        matcher = self._compiler.compile(spec.id, spec.grammar)
        if matcher is None:
            self._compiling[spec.id] = request
        else:
            self._start(request, matcher)

    def cancel(self, id: int, choice: int = -1) -> None:
        """End a request, or one of its choices; unknown ones are ignored. Nothing more is reported of them."""
        request = self._requests.get(id)
        if request is None:
            return
        request.live = set() if choice < 0 else request.live - {choice}
        if not request.live:
            self._requests.pop(id)
            self._compiling.pop(id, None)
        for sequence in list(request.sequences):
            gone = sequence.choice not in request.live if request.forked else not request.live
            if gone:
                self._scheduler.remove(sequence)
                request.sequences.remove(sequence)
        self.room.settle(self._requests.values())

    def rejections(self) -> list[Rejected]:
        """Requests refused since the last call."""
        rejected, self._rejected = self._rejected, []
        return rejected

    def flush(self) -> None:
        """Drop the prefix cache."""
        if self._cache is not None:
            self._cache.clear()

    @property
    def max_model_len(self) -> int:
        """Tokens of the longest context that requests may ask for; pages that go and come change it."""
        return self.room.max_model_len

    def resize(self, pages: int) -> int:
        """Have so many KV pages, as `PageRoom.resize` says. Returns how many there are."""
        return self.room.resize(pages, self._requests.values())

    @property
    def has_work(self) -> bool:
        """Whether a step would do something now."""
        return bool(
            self._finished
            or self._scheduler.running
            or self._scheduler.waiting
            or (self._compiler is not None and self._compiler.has_results)
        )

    @property
    def deadline(self) -> float | None:
        """With `has_work` false: when (of `clock`) to call `step` anyway, because a grammar compiles too long."""
        return self._compiler.deadline if self._compiler is not None and self._compiling else None

    @property
    def unfinished(self) -> int:
        """Requests that are not finished, those whose grammar is being compiled included."""
        return len(self._requests)

    def stats(self, id: int = 0) -> Stats:
        totals = self._totals
        return Stats(
            id=id,
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting) + len(self._compiling),
            pages_total=self._pool.total,
            pages_free=self._pool.free,
            pages_cached=self._pool.idle,
            prompt_tokens=totals.prompt_tokens,
            prompt_tokens_computed=totals.prompt_tokens_computed,
            prompt_tokens_cached=totals.prompt_tokens_cached,
            generated_tokens=totals.generated_tokens,
            preemptions=self._scheduler.preemptions,
            steps=totals.steps,
            drafted_tokens=totals.drafted_tokens,
            accepted_tokens=totals.accepted_tokens,
        )

    # --- one step ---------------------------------------------------------------------------------------------------

    def step(self) -> list[SequenceStep]:
        """Compute one batch. Returns what each choice gained; those with a `finish` are done."""
        self._collect_grammars()
        steps, self._finished = self._finished, []
        plan = self._scheduler.schedule()
        if not plan.chunks:
            return steps
        decoding = sum(count == 1 for _, count in plan.chunks)
        for source, target in plan.copies:
            self._executor.copy_page(source, target)
        if self._speculator is not None:
            self._speculate(self._speculator, plan, decoding=decoding)
        started = self._clock()
        assembled = ForwardPass.of(plan.chunks)
        results = assembled.compute(self._executor)
        self._account(plan)
        if not isinstance(results, list):
            for span in assembled.scored:
                self._score_prompt(span, results)
        steps += self._sample(assembled.ready, results)
        seconds = self._clock() - started
        self._policy.observe(
            prompt_tokens=sum(count for _, count in plan.chunks if count > 1),
            decoding=decoding,
            seconds=seconds,
        )
        if self._speculator is not None and decoding == len(plan.chunks):
            self._speculator.observe(len(assembled.batch.token_ids), seconds)
        self.room.settle(self._requests.values())
        return steps

    def _speculate(self, speculator: Speculator, plan: Plan, *, decoding: int) -> None:
        """Drafts for a step that only decodes: beside a prompt's rows they would not pay for theirs."""
        for source, target in plan.copies:
            speculator.copy_page(source, target)
        if decoding < len(plan.chunks):
            speculator.follow(plan.chunks)
            return
        speculator.propose(
            [sequence for sequence, _ in plan.chunks if sequence.request.forked],
            rows=decoding,
            room=self._max_batch_tokens - decoding,
            reserve=self._scheduler.reserve,
        )

    def _account(self, plan: Plan) -> None:
        totals = self._totals
        totals.steps += 1
        for sequence, count in plan.chunks:
            request = sequence.request
            if request.cached_tokens is None:
                request.cached_tokens = sequence.computed
                totals.prompt_tokens_cached += sequence.computed
            totals.prompt_tokens_computed += max(0, min(count, sequence.prompt_len - sequence.computed))
            self._scheduler.computed(sequence, count)

    @torch.inference_mode()
    def _score_prompt(self, span: ScoredSpan, logits: torch.Tensor) -> None:
        request = span.sequence.request
        assert request.prompt_logprobs is not None
        targets = request.spec.prompt[span.position + 1 : span.position + 1 + span.count]
        scores = torch.log_softmax(logits[span.first : span.first + span.count], dim=-1)
        request.prompt_logprobs += logprobs(scores, targets, [request.spec.logprobs] * span.count)

    def _sample(
        self, ready: list[tuple[Sequence, int]], results: torch.Tensor | list[int]
    ) -> list[SequenceStep]:
        steps: list[SequenceStep] = []
        turns: list[Turn] = []
        for turn in [Turn.of(sequence, row) for sequence, row in ready]:
            request = turn.sequence.request
            if request.spec.max_tokens > 0:
                turns.append(turn)
                continue
            steps += [self._without_tokens(request, choice) for choice in turn.choices]
            self._retire(turn.sequence, *turn.choices)
        if not turns:
            return steps
        if isinstance(results, list):
            drawn = iter([Sampled(results[row]) for turn in turns for row in turn.rows()])
        else:
            draws = [draw for turn in turns for draw in turn.draws()]
            drawn = iter(sample(results, draws, mask_of(turns, self._masker)))
        for turn in turns:
            if turn.sequence.request.forked:
                steps.append(self._extend(turn.sequence, drawn))
            else:
                steps += self._fork(turn.sequence, turn.choices, [next(drawn) for _ in turn.choices])
        return steps

    def _fork(self, parent: Sequence, choices: list[int], drawn: list[Sampled]) -> list[SequenceStep]:
        """The prompt is computed: every choice goes its own way from here, the first on the sequence there is."""
        request = parent.request
        request.forked = True
        parent.choice = choices[0]
        family = [parent]
        for choice in choices[1:]:
            child = self._sequence(request, choice, parent.matcher)
            self._scheduler.fork(parent, child)
            family.append(child)
        return [self._extend(sequence, iter([draw])) for sequence, draw in zip(family, drawn, strict=True)]

    def _extend(self, sequence: Sequence, drawn: Iterator[Sampled]) -> SequenceStep:
        """Take a sequence's next draws: one, and one for each token of its draft. A draw counts if the draft before it
        is what was drawn; the last one that does may differ from the draft, or end the sequence."""
        request, draft = sequence.request, sequence.draft
        step = SequenceStep(request.id, sequence.choice, [], None)
        if sequence.generated == 0:
            step.prompt_logprobs = request.prompt_logprobs
            step.cached_tokens = request.cached_tokens or 0
        if not draft:
            draw = next(drawn)
            step.finish = self._append(sequence, draw, step)
            if self._speculator is not None:
                self._speculator.settle(sequence, draw.token, 0)
        else:
            self._extend_along(draft, sequence, drawn, step)
        if step.finish is not None:
            self._retire(sequence, sequence.choice)
        return step

    def _extend_along(
        self, draft: list[int], sequence: Sequence, drawn: Iterator[Sampled], step: SequenceStep
    ) -> None:
        draws = [next(drawn) for _ in range(1 + len(draft))]
        accepted = 0
        for place, draw in enumerate(draws):
            step.finish = self._append(sequence, draw, step)
            if len(step.tokens) == place or place == len(draft) or draw.token != draft[place]:
                break
            accepted += 1
            if step.finish is not None:
                break
        if self._speculator is not None:
            self._speculator.settle(sequence, draws[0].token, accepted)
        self._totals.drafted_tokens += len(draft)
        self._totals.accepted_tokens += accepted
        self._scheduler.settle(sequence, accepted)
        sequence.draft = []

    def _append(self, sequence: Sequence, draw: Sampled, step: SequenceStep) -> FinishReason | None:
        """Give a sequence its sampled token, and see whether that ends it."""
        is_text, finish = _judge(sequence, draw.token)
        if not is_text:
            return finish
        sequence.tokens.append(draw.token)
        step.tokens.append(draw.token)
        if draw.logprob is not None:
            step.logprobs = [*(step.logprobs or ()), draw.logprob]
        self._totals.generated_tokens += 1
        if sequence.penalties is not None:
            sequence.penalties.add(draw.token)
        if finish is None and sequence.generated >= sequence.request.spec.max_tokens:
            finish = "length"
        return finish

    # --- beginnings and ends ----------------------------------------------------------------------------------------

    def _start(self, request: Request, matcher: Matcher | None) -> None:
        self._scheduler.add(self._sequence(request, min(request.live), matcher))

    def _sequence(self, request: Request, choice: int, matcher: Matcher | None) -> Sequence:
        spec = request.spec
        sequence = Sequence(request, choice, list(spec.prompt))
        sequence.matcher = matcher and matcher.copy()
        if Penalties.wanted(spec.sampling):
            sequence.penalties = Penalties(spec.sampling, spec.prompt)
        request.sequences.append(sequence)
        return sequence

    def _retire(self, sequence: Sequence, *choices: int) -> None:
        request = sequence.request
        self._scheduler.remove(sequence)
        request.sequences.remove(sequence)
        request.live.difference_update(choices)
        if not request.live:
            del self._requests[request.id]

    def _without_tokens(self, request: Request, choice: int) -> SequenceStep:
        return SequenceStep(
            request.id,
            choice,
            [],
            "length",
            prompt_logprobs=request.prompt_logprobs,
            cached_tokens=request.cached_tokens or 0,
        )

    def _collect_grammars(self) -> None:
        if self._compiler is None or not (self._compiling or self._compiler.has_results):
            return
        for answer in self._compiler.collect():
            request = self._compiling.pop(answer.owner, None)
            if request is None:
                continue  # cancelled meanwhile
            if isinstance(answer.result, GrammarError):
                del self._requests[request.id]
                self._rejected.append(
                    Rejected(request.id, "invalid_request", f"the grammar cannot be used: {answer.result}")
                )
            else:
                self._start(request, answer.result)


def _judge(sequence: Sequence, token: int) -> tuple[bool, FinishReason | None]:
    """Whether a sampled token is text, and whether it ends the sequence (−1: there was nothing to sample)."""
    matcher, stops = sequence.matcher, sequence.request.stops
    if token < 0:
        _log.warning("nothing can be sampled: %s", matcher.error if matcher else "the logits are not numbers")
        return False, "error"
    if matcher is None:
        return (False, "stop") if token in stops else (True, None)
    if matcher.ends_with(token, stops):
        return False, "stop"
    if not matcher.advance(token):
        _log.warning("a grammar failed: %s", matcher.error)
        return False, "error"
    return True, "stop" if matcher.complete else None
