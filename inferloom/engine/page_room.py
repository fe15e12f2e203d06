"""How many KV pages an engine has at the moment, and what that means for the longest context."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

from inferloom.engine.pages import PagePool
from inferloom.engine.prefix_cache import Content, PrefixCache
from inferloom.engine.sequence import Request
from inferloom.models.batch import PAGE_SIZE, PageTable
from inferloom.models.kv_memory import give_back, page_bytes, write_page


class PageRoom:
    """Shrinks and grows a pool between two steps, takes pages out of it and brings them back.

    A request that was let in can always end: there are never fewer pages than the longest of those that live may come
    to need, nor than `least`. What retires is given back to the kernel.
    """

    def __init__(
        self,
        pool: PagePool,
        cache: PrefixCache | None,
        tables: Sequence[PageTable],
        *,
        drafting: Sequence[PageTable] = (),
        longest: int,
        least: int = 1,
    ) -> None:
        """`tables` are of the executor, and `drafting` of the model that drafts for it; empty where pages lie in a
        device's memory, and stay as many as they are. `longest` tokens is the model's own context, of which `least`
        pages must always be there."""
        self._pool = pool
        self._cache = cache
        self._tables = tables
        self._drafting = drafting
        self._longest = longest
        self._least = least
        self._wanted = pool.total
        if cache is not None:
            cache.fill = partial(write_page, self._kept_tables)

    @property
    def pages(self) -> int:
        """That there are now."""
        return self._pool.total

    @property
    def max_model_len(self) -> int:
        """Tokens of the longest context that may be asked for now."""
        return min(self._longest, self._pool.goal * PAGE_SIZE)

    def resize(self, pages: int, live: Iterable[Request]) -> int:
        """Have so many pages. Where fewer are wanted, free ones and cached prefixes go at once, those in use as they are
        released (`settle`). Returns how many there are."""
        if self._tables:
            self._wanted = max(1, pages)
            self._approach(live)
        return self._pool.total

    def settle(self, live: Iterable[Request]) -> None:
        """After a step: what was released meanwhile may go as well."""
        if self._pool.goal != self._wanted and self._wanted <= self._pool.capacity:
            self._approach(live)
        else:
            self._give_back()

    def _approach(self, live: Iterable[Request]) -> None:
        longest = max((len(request.spec.prompt) + request.spec.max_tokens for request in live), default=0)
        self._pool.resize(max(self._wanted, self._least, -(-longest // PAGE_SIZE)))
        self._give_back()

    def _give_back(self) -> None:
        retired = self._pool.take_retired()
        if retired:
            give_back([*self._tables, *self._drafting], retired)

    # --- pages that outlive the engine ------------------------------------------------------------------------------

    @property
    def bytes_per_page(self) -> int:
        """Of the executor and of the model that drafts for it."""
        return sum(table.size for table in self._kept_tables)

    @property
    def _kept_tables(self) -> list[PageTable]:
        return [*self._tables, *self._drafting]

    def hottest(self, count: int) -> list[tuple[bytes, Content]]:
        """At most so many pages of the prefix cache, the most recently used first: key, and what reads the content, to
        be called before the next step."""
        cache = self._cache
        if cache is None or not self._tables:
            return []
        return [
            (key, cache.promised(page) or partial(page_bytes, self._kept_tables, page))
            for key, page in cache.hottest()[:count]
        ]

    def attach(self, pages: Sequence[tuple[bytes, Content]]) -> int:
        """Bring such pages back, as far as there are free ones; how many. Their content is read when a prompt wants it."""
        if self._cache is None or not self._tables:
            return 0
        fitting = [(key, content) for key, content in pages if key not in self._cache][: self._pool.free]
        for key, content in reversed(fitting):  # the hottest becomes idle last
            page = self._pool.allocate()
            self._cache.promise(key, page, content)
            self._pool.release(page)
        return len(fitting)
