"""`Kernels` by torch's own operators."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from inferloom.kernels.base import HeadShape, Kernels
from inferloom.kernels.plan import AttentionPlan, DecodeGroup, PrefillChunk


class ReferenceKernels(Kernels):
    name = "reference"

    def min_rows(self, dtype: torch.dtype) -> int:
        # Measured (docs/decisions): below 4 rows of float32, or 2 of a 16-bit type, oneDNN and MKL pick other kernels.
        return 4 if dtype == torch.float32 else 2

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return F.linear(x, weight, bias)

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, eps)

    def rope_and_write(
        self,
        qkv: torch.Tensor,
        shape: HeadShape,
        *,
        norm: torch.Tensor | None,
        eps: float,
        cos: torch.Tensor,
        sin: torch.Tensor,
        pool: torch.Tensor,
        plan: AttentionPlan,
    ) -> torch.Tensor:
        turned = shape.heads + shape.kv_heads
        heads = qkv.view(qkv.shape[0], turned + shape.kv_heads, shape.head_dim)
        x = heads[:, :turned]
        if norm is not None:
            x.copy_(F.rms_norm(x, (shape.head_dim,), None, eps).mul_(norm))
        rolled = x.roll(shape.head_dim // 2, -1)
        x.mul_(cos).addcmul_(rolled, sin)
        if plan.fresh is not None:
            pool.index_fill_(0, plan.fresh, 0)
        pairs = heads[: plan.rows, shape.heads :].unflatten(1, (2, shape.kv_heads))
        pool.view(-1, 2, shape.kv_heads, shape.head_dim).index_copy_(0, plan.slots, pairs)
        return heads[: plan.rows, : shape.heads]

    def paged_attention(
        self, q: torch.Tensor, pool: torch.Tensor, plan: AttentionPlan, window: int | None
    ) -> torch.Tensor:
        part = plan.windows[window]
        if len(part.groups) == 1 and part.groups[0].rows is None and plan.padded_rows == plan.rows:
            return self._decode(q, pool, part.groups[0])
        out = q.new_zeros(plan.padded_rows, q.shape[1] * q.shape[2])
        for group in part.groups:
            if group.rows is None:
                out[: plan.rows] = self._decode(q, pool, group)
            else:
                out.index_copy_(0, group.rows, self._decode(q.index_select(0, group.rows), pool, group))
        for chunk in part.chunks:
            out[chunk.start : chunk.stop] = self._prefill(q[chunk.start : chunk.stop], pool, chunk)
        return out

    def _decode(self, q: torch.Tensor, pool: torch.Tensor, group: DecodeGroup) -> torch.Tensor:
        kv_heads, dim = pool.shape[3:]
        context = pool.index_select(0, group.pages).view(group.count, -1, 2, kv_heads, dim)
        # The query heads of one key-value head stand as its rows: grouped heads without copying keys.
        grouped = q.reshape(group.count, kv_heads, -1, dim)
        out = F.scaled_dot_product_attention(
            grouped, context[:, :, 0].transpose(1, 2), context[:, :, 1].transpose(1, 2), attn_mask=group.bias
        )
        return out.reshape(group.count, -1)

    def _prefill(self, q: torch.Tensor, pool: torch.Tensor, chunk: PrefillChunk) -> torch.Tensor:
        kv_heads, dim = pool.shape[3:]
        context = pool.index_select(0, chunk.pages).view(-1, 2, kv_heads, dim)[None, : chunk.context]
        out = F.scaled_dot_product_attention(
            q.transpose(0, 1)[None],
            context[:, :, 0].transpose(1, 2),
            context[:, :, 1].transpose(1, 2),
            attn_mask=chunk.mask,
            is_causal=chunk.mask is None,
            enable_gqa=q.shape[1] != kv_heads,
        )
        return out[0].transpose(0, 1).reshape(q.shape[0], -1)

    def gated(self, gate: torch.Tensor, up: torch.Tensor, activation: str) -> torch.Tensor:
        if activation == "silu":
            return F.silu(gate, inplace=True).mul_(up)
        return F.gelu(gate, approximate="tanh" if activation == "gelu_tanh" else "none").mul_(up)
