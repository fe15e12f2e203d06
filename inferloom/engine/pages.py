"""The page pool: which KV pages exist, how many owners each has, and which are worth keeping for a while."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable


class PagePool:
    """Reference counts over `total` pages, whose numbers are below `capacity`.

    A page is in exactly one of four states:

    - *in use*: at least one owner holds a reference;
    - *idle*: nobody holds it, but it was marked with `keep` (the prefix cache knows its content); the longest idle
      is reclaimed first;
    - *free*: neither;
    - *retired*: it does not exist for now, and its memory may be given back (`take_retired`). `total` are the others.

    While there are more pages than `resize` asked for, none is free or idle: each retires with its last owner.
    """

    def __init__(self, total: int, *, capacity: int | None = None) -> None:
        """`capacity`: pages that there may be one day; `total` by default."""
        capacity = total if capacity is None else capacity
        if not 1 <= total <= capacity:
            raise ValueError(f"a page pool needs at least one page, not {total}, of a capacity of {capacity}")
        self.total = total
        self.capacity = capacity
        self._goal = total
        self._retired = list(range(capacity - 1, total - 1, -1))
        self._emptied: list[int] = []  # retired since `take_retired`
        self.on_reclaim: Callable[[int], None] = lambda page: None  # told when an idle page is given away
        self._owners = [0] * capacity
        self._free = list(range(total - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # longest idle first
        self._kept: set[int] = set()

    @property
    def free(self) -> int:
        """Pages that are neither in use nor idle."""
        return len(self._free)

    @property
    def idle(self) -> int:
        """Pages that only the prefix cache still has a use for."""
        return len(self._idle)

    def idle_pages(self) -> list[int]:
        """The idle pages, the most recently released first."""
        return list(reversed(self._idle))

    @property
    def available(self) -> int:
        """Pages that `allocate` can hand out."""
        return len(self._free) + len(self._idle)

    @property
    def in_use(self) -> int:
        return self.total - self.available

    def owners(self, page: int) -> int:
        return self._owners[page]

    def allocate(self) -> int:
        """A page with one owner, free ones first. Raises `IndexError` if `available` is 0."""
        if self._free:
            page = self._free.pop()
        elif self._idle:
            page, _ = self._idle.popitem(last=False)
            self._kept.discard(page)
            self.on_reclaim(page)
        else:
            raise IndexError("no page is available")
        self._owners[page] = 1
        return page

    def share(self, page: int) -> None:
        """One more owner of a page that is in use or idle."""
        if self._owners[page] == 0:
            del self._idle[page]  # KeyError: sharing a free page is a bug
        self._owners[page] += 1

    def release(self, page: int) -> None:
        """One owner less; the last one leaves the page idle (if kept) or free."""
        owners = self._owners[page]
        if owners < 1:
            raise ValueError(f"page {page} was released more often than it was taken")
        self._owners[page] = owners - 1
        if owners == 1:
            if self.total > self._goal:
                self._retire(page)
            elif page in self._kept:
                self._idle[page] = None
            else:
                self._free.append(page)

    def release_all(self, pages: Iterable[int]) -> None:
        """Release a sequence's pages, last one first: the end of a prefix is reclaimed before its beginning."""
        for page in reversed(list(pages)):
            self.release(page)

    def keep(self, page: int) -> None:
        """When its last owner leaves, hold this page (it must be in use) as idle."""
        if self._owners[page] < 1:
            raise ValueError(f"page {page} is not in use")
        self._kept.add(page)

    def forget(self, page: int) -> None:
        """Undo `keep`: an idle page becomes free, one in use will be."""
        self._kept.discard(page)
        if page in self._idle:
            del self._idle[page]
            self._free.append(page)

    # --- how many there are -----------------------------------------------------------------------------------------

    @property
    def goal(self) -> int:
        """Pages that were asked for; `total` is more while too many are in use."""
        return self._goal

    def resize(self, pages: int) -> int:
        """Have so many pages, of at most `capacity`: at once where more are wanted; where fewer are, the free ones go,
        then the longest idle, and those in use as they are released. Returns `total`."""
        self._goal = max(1, min(pages, self.capacity))
        while self.total < self._goal:
            self._free.append(self._retired.pop())
            self.total += 1
        if self.total > self._goal:
            self._free.sort(reverse=True)  # the highest numbers go: what is given back should be of one piece
            going = self._free[: self.total - self._goal]
            del self._free[: len(going)]
            for page in going:
                self._retire(page)
        while self.total > self._goal and self._idle:
            self._retire(self._idle.popitem(last=False)[0])
        return self.total

    def take_retired(self) -> list[int]:
        """All retired pages in order, if some became so since the last call; otherwise none."""
        emptied, self._emptied = self._emptied, []
        return sorted(self._retired) if emptied else []

    def _retire(self, page: int) -> None:
        if page in self._kept:
            self._kept.discard(page)
            self.on_reclaim(page)
        self._retired.append(page)
        self._emptied.append(page)
        self.total -= 1

    def check(self) -> None:
        """Raise `AssertionError` if an invariant is broken (for tests)."""
        free, idle = set(self._free), set(self._idle)
        used = {page for page, owners in enumerate(self._owners) if owners > 0}
        assert len(free) == len(self._free), "a page is free twice"
        assert not (free & idle or free & used or idle & used), "a page is in two states"
        assert len(free) + len(idle) + len(used) == self.total, "a page is lost"
        assert idle <= self._kept, "an idle page nobody wants"
        assert not self._kept & free, "a kept page is free"
        retired = set(self._retired)
        assert not retired & (free | idle | used), "a retired page is in use"
        assert len(retired) == len(self._retired) == self.capacity - self.total, "a retired page is lost"
        assert self.total <= self._goal or not (free or idle), "a page is kept that was to go"


def kv_pages(
    *, max_model_len: int, max_batch_size: int, kv_bytes_per_page: int, budget_bytes: int, page_size: int
) -> int:
    """How many pages a model's pool gets: what its longest batch can use, or what the budget pays for.

    At least one page, so that the caller, who knows the model, can say in a sentence what is too small.
    """
    wanted = max_batch_size * -(-max_model_len // page_size)
    return max(1, min(wanted, budget_bytes // kv_bytes_per_page))
