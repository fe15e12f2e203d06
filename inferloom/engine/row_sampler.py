"""Sampling one row of logits on a CPU: what `sampler` does for a batch with torch, in a tenth of the operators.

A row of a small vocabulary costs less than torch's calls do, so rows are drawn one by one, through buffers that are
made once. What the best tokens are is found by a threshold on the score: a sort would cost more than all the rest.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from inferloom.engine.messages import SamplingSpec

Row = NDArray[np.float32]

_BLOCK = 256  # of the vocabulary, in the search for a token
_CUTS = (8.0, 16.0, 32.0)  # below the best score: what is looked at first, and what if that is too little
_MOST = 4096  # tokens that are worth sorting


class RowSampler:
    """Buffers for rows of `vocab_size` logits."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab = vocab_size
        padded = -(-vocab_size // _BLOCK) * _BLOCK
        self._scores = np.empty(vocab_size, dtype=np.float32)
        self._padded = np.zeros(padded, dtype=np.float32)
        self._weights = self._padded[:vocab_size]
        self._total = 0.0  # of the weights of the latest nucleus

    def draw(self, row: Row, top: float, sampling: SamplingSpec, die: float) -> int:
        """One token of a row whose largest logit is `top`; −1 where the nucleus is too wide to be sorted.

        `die` is in [0, 1). Order as in `sampler`: temperature, top-k, top-p of what top-k left, min-p.
        """
        scores = self._scores
        np.subtract(row, np.float32(top), out=scores)
        # a subnormal temperature would make 0 / 0 of the best score
        np.divide(scores, np.float32(max(sampling.temperature, 1e-30)), out=scores)
        least = np.log(np.float32(sampling.min_p)) if sampling.min_p > 0 else np.float32(-np.inf)
        limited = 0 < sampling.top_k < self._vocab
        if not limited and sampling.top_p >= 1.0:
            weights = np.exp(scores, out=self._weights)
            if sampling.min_p > 0:
                weights[scores < least] = 0.0
            return self._pick(die)
        best = self._best_of(scores, sampling.top_k) if limited else self._nucleus(scores, sampling.top_p)
        if best is None:
            return -1
        within = scores[best]
        mass = np.exp(within.astype(np.float64))
        reached = mass.cumsum()
        whole = reached[-1] if limited else self._total
        kept = (reached - mass < sampling.top_p * whole) & (within >= least)
        kept[0] = True  # top_p = 0 leaves the best
        cumulated = (mass * kept).cumsum()
        return int(best[cumulated.searchsorted(die * cumulated[-1], side="right")])

    def _best_of(self, scores: Row, count: int) -> NDArray[np.intp]:
        """The `count` best tokens, best first; of equal ones the first."""
        for cut in _CUTS:
            found = np.flatnonzero(scores >= -cut)
            if len(found) >= count:
                return _sorted(scores, found)[:count]
        return _sorted(scores, np.flatnonzero(scores > -np.inf))[:count]

    def _nucleus(self, scores: Row, top_p: float) -> NDArray[np.intp] | None:
        """At least the tokens that hold `top_p` of the mass, best first; None if they are very many."""
        weights = np.exp(scores, out=self._weights)
        self._total = float(weights.sum(dtype=np.float64))
        for cut in _CUTS:
            found = np.flatnonzero(scores >= -cut)
            if len(found) > _MOST:
                return None
            if float(weights[found].sum(dtype=np.float64)) >= top_p * self._total:
                return _sorted(scores, found)
        return None

    def _pick(self, die: float) -> int:
        """The first token whose cumulated weight exceeds `die` times the sum: first its block, then its place in it."""
        blocks = self._padded.reshape(-1, _BLOCK)
        sums = blocks.sum(axis=1, dtype=np.float64)
        reached = sums.cumsum()
        target = die * reached[-1]
        block = int(reached.searchsorted(target, side="right"))
        within = blocks[block].cumsum(dtype=np.float64)
        # the two sums of a block may differ in the last bit: stay within this one
        rest = min(target - (reached[block] - sums[block]), within[-1] * (1 - 2.0**-48))
        return block * _BLOCK + int(within.searchsorted(rest, side="right"))


def _sorted(scores: Row, found: NDArray[np.intp]) -> NDArray[np.intp]:
    return found[np.argsort(-scores[found], kind="stable")]
