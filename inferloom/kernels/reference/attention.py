"""Paged attention in torch: gather the context's blocks, two batched matrix products and a softmax.

torch's own fused attention is not used: on a CPU it takes twice as long for single rows over grouped heads, and for
prefills it computes half of what causality hides (`benchmarks/executor.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from inferloom.kernels.plan import PAGE_SIZE, AttentionPlan, DecodeGroup, PrefillChunk


class Scratch:
    """Memory that contexts are gathered into, kept between calls: fresh pages of the system would cost more than the copy."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0)

    def gather(self, pool: torch.Tensor, blocks: torch.Tensor, matrices: int) -> torch.Tensor:
        """The blocks of a layer's pool as [2, matrices, keys, head_dim], valid until the next call."""
        dim = pool.shape[-1]
        rows, width = blocks.shape[0], PAGE_SIZE * dim
        buffer = self._buffer
        if buffer.numel() < rows * width or buffer.dtype != pool.dtype or buffer.device != pool.device:
            self._buffer = buffer = torch.empty(rows * width, dtype=pool.dtype, device=pool.device)
        out = buffer[: rows * width].view(rows, width)
        torch.index_select(pool.view(-1, width), 0, blocks, out=out)
        return out.view(2, matrices, -1, dim)


@dataclass(frozen=True, slots=True)
class Scoring:
    """From products of queries and keys to the weights of a softmax."""

    scale: float
    soft_cap: float | None = None
    sinks: torch.Tensor | None = None  # [heads]

    def scaled(self, products: torch.Tensor) -> torch.Tensor:
        """In place."""
        products.mul_(self.scale)
        if self.soft_cap is not None:
            products.div_(self.soft_cap).tanh_().mul_(self.soft_cap)
        return products

    def weights(self, scores: torch.Tensor) -> torch.Tensor:
        """softmax over the last axis of scores [sequences, heads, rows, keys]."""
        if self.sinks is None:
            return torch.softmax(scores, dim=-1)
        sinks = self.sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        return torch.softmax(torch.cat((scores, sinks), dim=-1), dim=-1)[..., :-1]


def attend(
    q: torch.Tensor,
    pool: torch.Tensor,
    plan: AttentionPlan,
    window: int | None,
    scoring: Scoring,
    scratch: Scratch,
) -> torch.Tensor:
    """q [rows, heads, head_dim] over pool [pages, 2, kv_heads, 32, head_dim] → [plan.padded_rows, heads · head_dim]."""
    part = plan.windows[window]
    if len(part.groups) == 1 and part.groups[0].rows is None and plan.padded_rows == plan.rows:
        return _decode(q, pool, part.groups[0], scoring, scratch)
    out = q.new_zeros(plan.padded_rows, q.shape[1] * q.shape[2])
    for group in part.groups:
        if group.rows is None:
            out[: plan.rows] = _decode(q, pool, group, scoring, scratch)
        else:
            out.index_copy_(
                0, group.rows, _decode(q.index_select(0, group.rows), pool, group, scoring, scratch)
            )
    for chunk in part.chunks:
        _prefill(q, pool, chunk, out, scoring, scratch)
    return out


def _decode(
    q: torch.Tensor, pool: torch.Tensor, group: DecodeGroup, scoring: Scoring, scratch: Scratch
) -> torch.Tensor:
    kv_heads, dim = pool.shape[2], pool.shape[4]
    n = group.count
    keys, values = scratch.gather(pool, group.blocks, n * kv_heads)
    # The query heads that share a key-value head are the rows of one matrix: nothing is repeated.
    scores = scoring.scaled(torch.bmm(q.reshape(n * kv_heads, -1, dim), keys.transpose(1, 2)))
    scores.view(n, kv_heads, -1, scores.shape[2]).add_(group.bias)
    weights = scoring.weights(scores.view(n, -1, 1, scores.shape[2])).reshape(scores.shape)
    return torch.bmm(weights, values).view(n, -1)


def _prefill(
    q: torch.Tensor,
    pool: torch.Tensor,
    chunk: PrefillChunk,
    out: torch.Tensor,
    scoring: Scoring,
    scratch: Scratch,
) -> None:
    kv_heads, dim = pool.shape[2], pool.shape[4]
    keys, values = scratch.gather(pool, chunk.blocks, kv_heads)
    for part in chunk.parts:
        rows = part.stop - part.start
        columns = slice(part.first, part.last)
        grouped = q[part.start : part.stop].unflatten(1, (kv_heads, -1)).permute(1, 2, 0, 3)  # type: ignore[no-untyped-call]
        scores = scoring.scaled(
            torch.bmm(grouped.reshape(kv_heads, -1, dim), keys[:, columns].transpose(1, 2))
        )
        scores.view(kv_heads, -1, rows, scores.shape[2])[..., -part.bias.shape[1] :] += part.bias
        weights = scoring.weights(scores.view(1, -1, rows, scores.shape[2])).reshape(scores.shape)
        mixed = torch.bmm(weights, values[:, columns])
        out[part.start : part.stop].view(rows, kv_heads, -1, dim).copy_(
            mixed.view(kv_heads, -1, rows, dim).permute(2, 0, 1, 3)
        )
