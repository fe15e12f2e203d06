"""The scheduler: which sequences the next step computes, and how many tokens of each.

Plain lists in, a plan out: no tensors, no clock, no input or output.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field
from operator import attrgetter

from inferloom.engine.pages import PagePool
from inferloom.engine.policy import BatchPolicy
from inferloom.engine.prefix_cache import PrefixCache, extend_keys
from inferloom.engine.sequence import Sequence

_rank = attrgetter("rank")


@dataclass(slots=True)
class Plan:
    """One step. `chunks`: sequences and the number of their tokens to compute; `copies`: pages (source, target) to
    copy before; `fills`: keys of the prefixes that the prefix cache gains with it."""

    chunks: list[tuple[Sequence, int]] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)
    fills: set[bytes] = field(default_factory=set)


class Scheduler:
    """Sequences wait until there is a place in the batch and pages for all their tokens, then run until they finish
    or are preempted (pages freed, tokens kept, computed again later). Both lists are in order of service."""

    def __init__(
        self,
        pool: PagePool,
        cache: PrefixCache | None,
        policy: BatchPolicy,
        *,
        max_batch_tokens: int,
        max_batch_size: int,
        max_logit_rows: int,
        page_size: int,
    ) -> None:
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.preemptions = 0
        self._pool = pool
        self._cache = cache
        self._policy = policy
        self._max_tokens = max_batch_tokens
        self._max_running = min(
            max_batch_size, max_batch_tokens
        )  # so everyone who runs gets a token in every step
        self._max_logit_rows = max_logit_rows
        self._page_size = page_size

    # --- coming and going -------------------------------------------------------------------------------------------

    def add(self, sequence: Sequence) -> None:
        insort(self.waiting, sequence, key=_rank)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is, and free its pages."""
        (self.running if sequence in self.running else self.waiting).remove(sequence)
        self._release(sequence)

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """Let `child` go on from where the running `parent` is, sharing all its pages; without a place in the batch
        it waits its turn."""
        if len(self.running) >= self._max_running:
            self.add(child)
            return
        for page in parent.pages:
            self._pool.share(page)
        child.pages, child.keys = list(parent.pages), list(parent.keys)
        child.computed, child.followed = parent.computed, parent.followed
        insort(self.running, child, key=_rank)

    # --- one step ---------------------------------------------------------------------------------------------------

    def schedule(self) -> Plan:
        """Decodes first, then the prompts under way, then new ones; in order of service within each. A new prompt
        that begins with pages which this very step computes for another is passed over: it will share them."""
        plan = Plan()
        for sequence in [s for s in self.running if s.remaining == 1]:
            if sequence.pages and self._make_room(sequence, plan):
                plan.chunks.append((sequence, 1))

        decoding = len(plan.chunks)
        budget = min(self._max_tokens - decoding, self._policy.prompt_tokens(decoding))
        rows = self._max_logit_rows
        for sequence in [s for s in self.running if s.remaining > 1]:
            budget, rows = self._add_chunk(plan, sequence, budget, rows)
        place = 0
        while budget > 0 and rows > 0 and place < len(self.waiting):
            sequence = self.waiting[place]
            if not plan.fills.isdisjoint(self._prefix(sequence)):
                place += 1
            elif self._admit(sequence, plan):
                del self.waiting[place]  # those preempted for it stand behind it
                insort(self.running, sequence, key=_rank)
                budget, rows = self._add_chunk(plan, sequence, budget, rows)
            else:
                break
        return plan

    def _add_chunk(self, plan: Plan, sequence: Sequence, budget: int, rows: int) -> tuple[int, int]:
        size = min(sequence.remaining, budget)
        if sequence.awaits_prompt_logprobs:  # a row of logits for nearly every token: bounded in memory
            size = min(size, sequence.first_logit + rows - sequence.computed)
            rows -= max(0, sequence.computed + size - sequence.first_logit)
        if size > 0:
            plan.chunks.append((sequence, size))
            if self._cache is not None:
                first, last = (
                    sequence.computed // self._page_size,
                    (sequence.computed + size) // self._page_size,
                )
                extend_keys(sequence.keys, sequence.tokens, pages=last, page_size=self._page_size)
                plan.fills.update(key for key in sequence.keys[first:last] if key not in self._cache)
        return budget - max(size, 0), rows

    def _prefix(self, sequence: Sequence) -> list[bytes]:
        """The keys of the pages that a waiting sequence can share; at least one token is left to compute, so that
        there are logits."""
        if self._cache is None:
            return []
        reusable = sequence.first_logit // self._page_size
        extend_keys(sequence.keys, sequence.tokens, pages=reusable, page_size=self._page_size)
        return sequence.keys[:reusable]

    def computed(self, sequence: Sequence, count: int) -> None:
        """`count` more tokens of a sequence are in its pages; full pages become known to the prefix cache."""
        sequence.computed += count
        if self._cache is None:
            return
        first, last = (sequence.computed - count) // self._page_size, sequence.computed // self._page_size
        if last > first:
            extend_keys(sequence.keys, sequence.tokens, pages=last, page_size=self._page_size)
            for index in range(first, last):
                self._cache.put(sequence.keys[index], sequence.pages[index])

    def reserve(self, sequence: Sequence, wanted: int) -> int:
        """Pages for `wanted` drafted tokens of a sequence that decodes, as far as there are spare ones; how many of
        the tokens fit."""
        spare = self._pool.available - len(self.running)
        end = sequence.computed + 1 + wanted
        while len(sequence.pages) * self._page_size < end and spare > 0:
            sequence.pages.append(self._pool.allocate())
            spare -= 1
        return min(wanted, len(sequence.pages) * self._page_size - sequence.computed - 1)

    def settle(self, sequence: Sequence, accepted: int) -> None:
        """So many drafted tokens, now among its tokens, are in a sequence's pages too; pages for the others go."""
        if accepted:
            self.computed(sequence, accepted)
        kept = -(-sequence.computed // self._page_size)
        while len(sequence.pages) > kept:
            self._pool.release(sequence.pages.pop())

    # --- pages ------------------------------------------------------------------------------------------------------

    def _make_room(self, sequence: Sequence, plan: Plan) -> bool:
        """A page of its own for the next token of a decoding sequence; False if it was preempted for want of one."""
        index, tail = divmod(sequence.computed, self._page_size)
        shared = tail > 0 and self._pool.owners(sequence.pages[index]) > 1
        if not shared and index < len(sequence.pages):
            return True
        while not self._pool.available:
            victim = self.running[-1]
            self._preempt(victim, plan)
            if victim is sequence:
                return False
            shared = tail > 0 and self._pool.owners(sequence.pages[index]) > 1
            if not shared and index < len(sequence.pages):  # the victim was the other owner
                return True
        page = self._pool.allocate()
        if shared:  # copy-on-write
            plan.copies.append((sequence.pages[index], page))
            self._pool.release(sequence.pages[index])
            sequence.pages[index] = page
        else:
            sequence.pages.append(page)
        return True

    def _admit(self, sequence: Sequence, plan: Plan) -> bool:
        """Pages for all tokens of a waiting sequence, cached ones first, at the expense of lesser ones."""
        while not (len(self.running) < self._max_running and self._allocate(sequence)):
            victim = self.running[-1] if self.running else None
            if victim is None or victim.priority >= sequence.priority or victim.rank < sequence.rank:
                return False
            self._preempt(victim, plan)
        return True

    def _allocate(self, sequence: Sequence) -> bool:
        if self._cache is not None:
            sequence.pages = self._cache.take(self._prefix(sequence))
        wanted = -(-len(sequence.tokens) // self._page_size) - len(sequence.pages)
        # Every running sequence will soon want a page: admitting on the last ones would only preempt again.
        if wanted + len(self.running) > self._pool.available and (
            self.running or wanted > self._pool.available
        ):
            self._release(sequence)
            return False
        sequence.computed = sequence.followed = len(sequence.pages) * self._page_size
        sequence.pages.extend(self._pool.allocate() for _ in range(wanted))
        return True

    def _preempt(self, victim: Sequence, plan: Plan) -> None:
        self.running.remove(victim)
        plan.chunks = [chunk for chunk in plan.chunks if chunk[0] is not victim]
        self._release(victim)
        self.add(victim)
        self.preemptions += 1

    def _release(self, sequence: Sequence) -> None:
        self._pool.release_all(sequence.pages)
        sequence.pages, sequence.computed, sequence.followed = [], 0, 0
