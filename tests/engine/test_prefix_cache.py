from __future__ import annotations

from inferloom.engine.pages import PagePool
from inferloom.engine.prefix_cache import PrefixCache, extend_keys


def keys_of(tokens: list[int], *, page_size: int = 2) -> list[bytes]:
    keys: list[bytes] = []
    extend_keys(keys, tokens, pages=len(tokens) // page_size, page_size=page_size)
    return keys


def filled(total: int, tokens: list[int]) -> tuple[PagePool, PrefixCache, list[int]]:
    pool = PagePool(total)
    cache = PrefixCache(pool)
    pages = []
    for key in keys_of(tokens):
        pages.append(pool.allocate())
        cache.put(key, pages[-1])
    return pool, cache, pages


def test_a_key_stands_for_everything_before_it() -> None:
    assert keys_of([1, 2, 3, 4])[1] != keys_of([9, 2, 3, 4])[1]
    assert keys_of([1, 2, 3, 4])[0] == keys_of([1, 2, 9, 9])[0]
    assert keys_of([1, 2]) != keys_of([258, 0])


def test_keys_can_be_extended_as_a_sequence_grows() -> None:
    keys = keys_of([1, 2])
    extend_keys(keys, [1, 2, 3, 4, 5], pages=2, page_size=2)
    assert keys == keys_of([1, 2, 3, 4])


def test_the_longest_known_prefix_is_taken_and_owned() -> None:
    pool, cache, pages = filled(8, [1, 2, 3, 4, 5, 6])
    assert cache.take(keys_of([1, 2, 3, 4, 9, 9])) == pages[:2]
    assert [pool.owners(page) for page in pages] == [2, 2, 1]
    assert cache.take(keys_of([9, 9, 3, 4])) == []


def test_a_prefix_outlives_its_sequence_until_its_pages_are_needed() -> None:
    pool, cache, pages = filled(3, [1, 2, 3, 4, 5, 6])
    pool.release_all(pages)
    assert pool.idle == 3
    pool.allocate()  # takes the end of the prefix
    assert cache.take(keys_of([1, 2, 3, 4, 5, 6])) == pages[:2]
    pool.check()


def test_the_first_page_with_a_prefix_stays_the_known_one() -> None:
    pool, cache, pages = filled(3, [1, 2])
    twin = pool.allocate()
    cache.put(keys_of([1, 2])[0], twin)
    pool.release(twin)
    assert pool.idle == 0, "the twin is free, not idle"
    assert cache.take(keys_of([1, 2])) == pages


def test_clearing_frees_idle_pages_now_and_pages_in_use_later() -> None:
    pool, cache, pages = filled(4, [1, 2, 3, 4])
    pool.release(pages[1])
    cache.clear()
    assert len(cache) == 0
    assert (pool.free, pool.idle, pool.in_use) == (3, 0, 1)
    pool.release(pages[0])
    assert pool.free == 4
