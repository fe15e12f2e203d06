"""`Kernels` by torch's own operators."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from inferloom.kernels.base import HeadShape, Kernels
from inferloom.kernels.plan import AttentionPlan
from inferloom.kernels.reference.attention import Scratch, attend

_HALF = (torch.bfloat16, torch.float16)


def _turned_is_faster(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Measured with oneDNN 3.12 on AVX-512: 10 to 30 % on these shapes, a loss on others (`benchmarks/executor.py`)."""
    rows = x.shape[0]
    if rows > 64:
        return False
    if rows > 16:
        return rows % 16 == 0
    return rows > 8 and 2 * weight.shape[1] >= 5 * weight.shape[0]


class ReferenceKernels(Kernels):
    name = "reference"

    def __init__(self) -> None:
        self._scratch = Scratch()

    def padded_rows(self, rows: int, dtype: torch.dtype) -> int:
        # Found by comparing bits: with fewer than 2 rows of a 16-bit type oneDNN, and with a share of fewer than 4
        # rows of float32 in any thread MKL, picks a kernel that adds up in another order.
        if dtype == torch.float32:
            whole = 4 * torch.get_num_threads()
            return -(-rows // whole) * whole
        return max(rows, 2)

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if (
            bias is None
            and weight.dtype in _HALF
            and weight.device.type == "cpu"
            and _turned_is_faster(x, weight)
        ):
            # The weights as the left factor: oneDNN repacks the right one on every call.
            return torch.mm(weight, x.t()).t()
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
        if plan.begun is not None:
            pool.index_fill_(0, plan.begun, 0)
        written = heads[: plan.rows, shape.heads :].reshape(-1, shape.head_dim)
        pool.view(-1, shape.head_dim).index_copy_(0, plan.slots, written)
        return heads[: plan.rows, : shape.heads]

    def paged_attention(
        self, q: torch.Tensor, pool: torch.Tensor, plan: AttentionPlan, window: int | None
    ) -> torch.Tensor:
        return attend(q, pool, plan, window, self._scratch)

    def gated(self, gate: torch.Tensor, up: torch.Tensor, activation: str) -> torch.Tensor:
        if activation == "silu":
            return F.silu(gate, inplace=True).mul_(up)
        return F.gelu(gate, approximate="tanh" if activation == "gelu_tanh" else "none").mul_(up)
