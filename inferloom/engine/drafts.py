"""Drafts from a sequence's own tokens: what followed the last time its latest tokens stood together.

Prompt lookup (Saxena 2023; the n-gram drafts of vLLM and transformers), with an index that grows by a token in constant
time in place of a search through the context at every step.
"""

from __future__ import annotations

from collections.abc import Sequence


class NgramIndex:
    """Where each pair and each triple of a sequence's tokens last stood, and where its latest ones stood before."""

    __slots__ = ("_known", "_pairs", "_triples", "pair", "triple")

    def __init__(self) -> None:
        self._pairs: dict[tuple[int, int], int] = {}
        self._triples: dict[tuple[int, int, int], int] = {}
        self._known = 0  # tokens that are indexed
        self.pair = -1  # the position after the latest pair's earlier occurrence; −1: it is new
        self.triple = -1

    def update(self, tokens: Sequence[int]) -> None:
        """Index what was appended to `tokens` since the last call."""
        pairs, triples = self._pairs, self._triples
        for end in range(self._known + 1, len(tokens) + 1):
            if end >= 2:
                pair = (tokens[end - 2], tokens[end - 1])
                self.pair = pairs.get(pair, -1)
                pairs[pair] = end
            if end >= 3:
                triple = (tokens[end - 3], tokens[end - 2], tokens[end - 1])
                self.triple = triples.get(triple, -1)
                triples[triple] = end
        self._known = len(tokens)

    def draft(self, tokens: Sequence[int], count: int) -> list[int]:
        """Up to `count` tokens that followed the latest triple, or else pair, the last time; empty if it is new.

        Where the earlier occurrence reaches into the draft itself, the text is periodic, and the draft goes on so.
        """
        start = self.triple if self.triple >= 0 else self.pair
        if start < 0 or count < 1:
            return []
        drafted = list(tokens[start : start + count])
        period = len(tokens) - start
        while len(drafted) < count:
            drafted.append(drafted[-period])
        return drafted
