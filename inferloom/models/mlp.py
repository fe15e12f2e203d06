"""The second half of a layer: gated or plain, one for all rows or a mixture of experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from inferloom.kernels.base import Kernels
from inferloom.models.linears import LinearLike


@dataclass(frozen=True, slots=True)
class MLP:
    """down(activation(gate x) * up x), or down(activation(up x)) where there is no gate."""

    gate: LinearLike | None
    up: LinearLike
    down: LinearLike
    activation: str
    kernels: Kernels

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self.gate is None:
            return self.down(self.kernels.gated(self.up(x), None, self.activation))
        return self.down(self.kernels.gated(self.gate(x), self.up(x), self.activation))


@dataclass(frozen=True, slots=True)
class Mixture:
    """The rows' best experts, weighted by the router (`MixtureSpec`); `shared` sees every row."""

    router: LinearLike
    experts: Sequence[MLP]
    per_token: int
    normalised: bool
    shared: MLP | None
    shared_gate: LinearLike | None
    kernels: Kernels

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """A row's experts add up in the order of their numbers, whatever other rows there are: invariant in float32."""
        weights, chosen = torch.softmax(self.router(x), dim=-1, dtype=torch.float32).topk(self.per_token)
        if self.normalised:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        weights = weights.to(x.dtype)
        out = torch.zeros_like(x)
        for number in torch.bincount(chosen.flatten()).nonzero().flatten().tolist():
            rows, ranks = (chosen == number).nonzero(as_tuple=True)
            mixed = self.experts[number](self._padded(x, rows))[: len(rows)]
            out.index_add_(0, rows, mixed * weights[rows, ranks, None])
        if self.shared is not None and self.shared_gate is not None:
            out += _sigmoid(self.shared_gate(x)) * self.shared(x)
        return out

    def _padded(self, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Those rows of x, and so many more that an expert's sums do not depend on their number."""
        padding = self.kernels.padded_rows(len(rows), x.dtype) - len(rows)
        return x.index_select(0, torch.cat((rows, rows[:1].expand(padding))) if padding else rows)


def _sigmoid(x: torch.Tensor) -> torch.Tensor:
    """Of x [rows, 1], as the softmax of (x, 0): torch's own sigmoid computes the last few rows by another formula, so that a
    row's bits would depend on how many rows there are."""
    return torch.softmax(torch.cat((x, torch.zeros_like(x)), dim=1), dim=1)[:, :1]
