"""Presence, frequency and repetition penalties: which tokens one choice has seen, and what that costs them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from inferloom.engine.messages import SamplingSpec


class Penalties:
    """The distinct tokens of one sequence and how often each was generated, in arrays that grow by doubling.

    Presence and frequency count generated tokens (OpenAI), repetition also the prompt's (the CTRL paper).
    """

    def __init__(self, sampling: SamplingSpec, prompt: Iterable[int]) -> None:
        self._presence = sampling.presence_penalty
        self._frequency = sampling.frequency_penalty
        self._repetition = sampling.repetition_penalty
        seen = dict.fromkeys(prompt) if self._repetition != 1.0 else {}
        self._places = {token: place for place, token in enumerate(seen)}
        self._ids = np.fromiter(seen, dtype=np.int64, count=len(seen))
        self._counts = np.zeros(len(seen), dtype=np.float32)

    @staticmethod
    def wanted(sampling: SamplingSpec) -> bool:
        return bool(
            sampling.presence_penalty or sampling.frequency_penalty or sampling.repetition_penalty != 1.0
        )

    def add(self, token: int) -> bool:
        """A token was generated; whether it is one that was not seen before."""
        seen = len(self._places)
        place = self._places.setdefault(token, seen)
        if place == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros(max(16, place), dtype=np.int64)])
            self._counts = np.concatenate([self._counts, np.zeros(max(16, place), dtype=np.float32)])
        self._ids[place] = token
        self._counts[place] += 1
        return place == seen

    def remove(self, token: int, *, new: bool) -> None:
        """Undo the latest `add`; `new`: what it returned."""
        self._counts[self._places[token]] -= 1
        if new:
            del self._places[token]

    def apply_after(self, ahead: Iterable[int], logits: torch.Tensor) -> None:
        """`apply` as if the tokens of `ahead` had been generated too."""
        added = [(token, self.add(token)) for token in ahead]
        self.apply(logits)
        for token, new in reversed(added):
            self.remove(token, new=new)

    def apply(self, logits: torch.Tensor) -> None:
        """Change one row of logits, float32 [vocab], in place."""
        size = len(self._places)
        if not size:
            return
        ids = torch.from_numpy(self._ids[:size]).to(logits.device)
        counts = torch.from_numpy(self._counts[:size]).to(logits.device)
        values = logits[ids]
        if self._repetition != 1.0:
            values = torch.where(values > 0, values / self._repetition, values * self._repetition)
        values = values - self._frequency * counts - self._presence * (counts > 0)
        logits[ids] = values
