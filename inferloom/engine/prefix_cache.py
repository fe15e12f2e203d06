"""The prefix cache: full pages under the hash of everything that led to them, found again by later prompts."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from hashlib import blake2b

from inferloom.engine.pages import PagePool

Content = Callable[[], bytes | memoryview | None]  # a page's bytes; None where there are none any more


def extend_keys(keys: list[bytes], tokens: Sequence[int], *, pages: int, page_size: int) -> None:
    """Append to `keys`, the keys of a sequence's first full pages, until there are `pages` of them.

    A key is BLAKE2b over the key of the page before and the page's own tokens. 256 bits: two prefixes with one key
    would mean reading another request's memory, so chance must not matter.
    """
    for start in range(len(keys) * page_size, pages * page_size, page_size):
        parent = keys[-1] if keys else b""
        page = array("q", tokens[start : start + page_size]).tobytes()
        keys.append(blake2b(parent + page, digest_size=32).digest())


class PrefixCache:
    """Which page holds which prefix. It owns no references: it asks the pool to keep pages, and forgets those
    that the pool reclaims."""

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._pages: dict[bytes, int] = {}
        self._keys: dict[int, bytes] = {}
        self._promised: dict[int, Content] = {}  # pages that are filled when somebody takes them
        self.fill: Callable[[int, bytes | memoryview], None] = lambda page, content: None
        pool.on_reclaim = self._drop

    def __len__(self) -> int:
        return len(self._pages)

    def __contains__(self, key: bytes) -> bool:
        return key in self._pages

    def take(self, keys: Sequence[bytes]) -> list[int]:
        """The known pages of the longest known run of `keys`. The caller becomes an owner of them."""
        pages: list[int] = []
        for key in keys:
            page = self._pages.get(key)
            if page is None or not self._is_filled(page):
                break
            self._pool.share(page)
            pages.append(page)
        return pages

    def put(self, key: bytes, page: int) -> None:
        """Remember a full, computed page (in use). If another page holds the same prefix, that one stays known."""
        if key not in self._pages and page not in self._keys:
            self._pages[key] = page
            self._keys[page] = key
            self._pool.keep(page)

    def promise(self, key: bytes, page: int, content: Content) -> None:
        """As `put`, of a page whose content is read, and given to `fill`, when it is taken."""
        self.put(key, page)
        self._promised[page] = content

    def promised(self, page: int) -> Content | None:
        """What a page that was never taken is to be filled with."""
        return self._promised.get(page)

    def _is_filled(self, page: int) -> bool:
        content = self._promised.pop(page, None)
        if content is None:
            return True
        found = content()
        if found is None:
            self._drop(page)
            self._pool.forget(page)
            return False
        self.fill(page, found)
        return True

    def hottest(self) -> list[tuple[bytes, int]]:
        """Keys and pages, the most recently used first; a prefix comes before what follows it."""
        ordered = [page for page in self._keys if self._pool.owners(page)]
        ordered += self._pool.idle_pages()
        return [(self._keys[page], page) for page in ordered]

    def clear(self) -> None:
        """Forget everything; idle pages become free."""
        for page in list(self._keys):
            self._drop(page)
            self._pool.forget(page)

    def _drop(self, page: int) -> None:
        del self._pages[self._keys.pop(page)]
        self._promised.pop(page, None)
