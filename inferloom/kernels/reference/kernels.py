"""`Kernels` by torch's own operators."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from inferloom.formats.layouts import PackedTensor, dequantise
from inferloom.kernels.base import HeadShape, Kernels
from inferloom.kernels.plan import AttentionPlan
from inferloom.kernels.reference.attention import Scoring, Scratch, attend

_HALF = (torch.bfloat16, torch.float16)


def _turned_is_faster(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Measured with oneDNN 3.12 on AVX-512: 10 to 30 % on these shapes, a loss on others (`benchmarks/executor.py`)."""
    rows = x.shape[0]
    if rows > 64:
        return False
    if rows > 16:
        return rows % 16 == 0
    if rows > 8 and torch.get_num_threads() > 1 and (rows == 16 or weight.numel() <= 1 << 20):
        return True
    return rows > 8 and 2 * weight.shape[1] >= 5 * weight.shape[0]


def _row_by_row(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x [1 or 2, in] @ weight.T by torch's own matrix-vector product, which reads bfloat16 weights at the pace of the
    memory. oneDNN, which torch prefers when asked plainly, repacks them on every call and takes 2.5 times as long; from
    3 rows on it wins all the same."""
    torch._C._set_mkldnn_enabled(False)  # the public setter warns on every call
    try:
        if x.shape[0] == 1:
            return F.linear(x, weight)
        return torch.cat([F.linear(row, weight) for row in (x[:1], x[1:])])
    finally:
        torch._C._set_mkldnn_enabled(True)


class ReferenceKernels(Kernels):
    name = "reference"

    def __init__(self) -> None:
        self._scratch = Scratch()

    def padded_rows(self, rows: int, dtype: torch.dtype) -> int:
        # Found by comparing bits: with a share of fewer than 4 rows of float32 in any thread MKL picks a kernel that
        # adds up in another order.
        if dtype == torch.float32:
            whole = 4 * torch.get_num_threads()
            return -(-rows // whole) * whole
        return rows

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if weight.device.type == "cpu" and weight.dtype in _HALF:
            if x.shape[0] <= 2 and weight.dtype == torch.bfloat16:
                out = _row_by_row(x, weight)
                return out if bias is None else out.add_(bias)
            if bias is None and _turned_is_faster(x, weight):
                # The weights as the left factor: oneDNN repacks the right one on every call.
                return torch.mm(weight, x.t()).t()
        return F.linear(x, weight, bias)

    def packed_linear(self, x: torch.Tensor, weight: PackedTensor, bias: torch.Tensor | None) -> torch.Tensor:
        # For comparison: an executor of these operators dequantises once, when it loads.
        return self.linear(x, dequantise(weight, x.dtype).to(x.device), bias)

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        if x.dtype == torch.float32:
            return F.rms_norm(x, (x.shape[-1],), weight, eps)
        # torch's own writes every intermediate result to new memory: several times as long for the rows of a prefill
        wide = x.float()
        scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale.square_().mul_(1 / x.shape[-1]).add_(eps).rsqrt_()
        return wide.mul_(scale).mul_(weight).to(x.dtype)

    def layer_norm(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float
    ) -> torch.Tensor:
        return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)

    def rope_and_write(
        self,
        qkv: torch.Tensor,
        shape: HeadShape,
        *,
        norm: torch.Tensor | None,
        eps: float,
        cos: torch.Tensor | None,
        sin: torch.Tensor | None,
        pool: torch.Tensor,
        plan: AttentionPlan,
    ) -> torch.Tensor:
        turned = shape.heads + shape.kv_heads
        heads = qkv.view(qkv.shape[0], turned + shape.kv_heads, shape.head_dim)
        x = heads[:, :turned]
        if norm is not None:
            # A weight in float32 (1 + w) asks for one rounding at the end; others are multiplied in the compute dtype.
            wide = x.float() if norm.dtype == torch.float32 else x
            x.copy_(F.rms_norm(wide, (shape.head_dim,), None, eps).mul_(norm))
        if cos is not None and sin is not None:
            part = x[..., : cos.shape[-1]]
            rolled = part.roll(cos.shape[-1] // 2, -1)
            part.mul_(cos).addcmul_(rolled, sin)
        if plan.begun is not None:
            pool.index_fill_(0, plan.begun, 0)
        written = heads[: plan.rows, shape.heads :].reshape(-1, shape.head_dim)
        pool.view(-1, shape.head_dim).index_copy_(0, plan.slots, written)
        return heads[: plan.rows, : shape.heads]

    def paged_attention(
        self,
        q: torch.Tensor,
        pool: torch.Tensor,
        plan: AttentionPlan,
        window: int | None,
        *,
        scale: float | None = None,
        soft_cap: float | None = None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if scale is None:
            scale = q.shape[-1] ** -0.5
        return attend(q, pool, plan, window, Scoring(scale, soft_cap, sinks), self._scratch)

    def gated(self, gate: torch.Tensor, up: torch.Tensor | None, activation: str) -> torch.Tensor:
        if activation == "silu":
            out = F.silu(gate, inplace=True)
        elif activation == "relu":
            out = gate.relu_()
        else:
            out = F.gelu(gate, approximate="tanh" if activation == "gelu_tanh" else "none")
        return out if up is None else out.mul_(up)
