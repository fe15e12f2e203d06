"""The index of a sequence's pairs and triples, against a search through the whole sequence."""

from __future__ import annotations

import random

import pytest

from inferloom.engine.drafts import NgramIndex


def searched(tokens: list[int], count: int) -> list[int]:
    """What a scan finds: the latest earlier occurrence of the last three tokens, else of the last two."""
    for size in (3, 2):
        for end in range(len(tokens) - 1, size - 1, -1):
            if len(tokens) >= size and tokens[end - size : end] == tokens[-size:]:
                grown = list(tokens)
                for _ in range(count):
                    grown.append(grown[end + len(grown) - len(tokens)])
                return grown[len(tokens) :]
    return []


@pytest.mark.parametrize("vocabulary", [2, 5, 40])
def test_a_draft_is_what_a_search_finds(vocabulary: int) -> None:
    rng = random.Random(vocabulary)
    tokens: list[int] = []
    index = NgramIndex()
    for _ in range(300):
        tokens += [rng.randrange(vocabulary) for _ in range(rng.choice([1, 1, 1, 4]))]
        index.update(tokens)
        count = rng.randrange(1, 9)
        assert index.draft(tokens, count) == searched(tokens, count)


@pytest.mark.parametrize(
    ("tokens", "count", "expected"),
    [
        ([], 4, []),
        ([7], 4, []),
        ([1, 2, 3, 4], 4, []),
        ([1, 2, 3, 4, 1, 2], 2, [3, 4]),
        ([5, 1, 2, 9, 6, 1, 2, 8, 5, 1, 2], 1, [9]),  # the triple goes before the later pair
        ([1, 2, 1, 2], 5, [1, 2, 1, 2, 1]),  # a period goes on beyond what is there
        ([4, 4, 4], 3, [4, 4, 4]),
        ([1, 2, 3, 1, 2], 0, []),
    ],
)
def test_drafts_of_small_texts(tokens: list[int], count: int, expected: list[int]) -> None:
    index = NgramIndex()
    index.update(tokens)
    assert index.draft(tokens, count) == expected


def test_an_update_without_news_changes_nothing() -> None:
    tokens = [1, 2, 3, 1, 2]
    index = NgramIndex()
    index.update(tokens)
    index.update(tokens)
    assert index.draft(tokens, 2) == [3, 1]
