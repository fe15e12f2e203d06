"""The operators of a decoder: one signature each, whoever computes them.

An instance is handed to the model that uses it; there is no module-level state. `reference` (torch) runs everywhere
and says what is right; native operators take the same arguments and are tested against it.

Shapes: T rows (tokens of the step), H hidden size, N query heads, K key-value heads, D head size. Activations are
contiguous [T, …] in the compute dtype unless said otherwise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from inferloom.formats.layouts import PackedTensor
from inferloom.kernels.plan import AttentionPlan


@dataclass(frozen=True, slots=True)
class HeadShape:
    """Heads of one attention layer."""

    heads: int
    kv_heads: int
    head_dim: int


class Kernels(ABC):
    """Batch-invariant where their docstring says so: a row's result does not depend on the other rows."""

    name: str

    @abstractmethod
    def padded_rows(self, rows: int, dtype: torch.dtype) -> int:
        """Rows to give to `linear` so that in float32 a row's sum does not depend on how many others there are."""

    @abstractmethod
    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x [T, in] @ weight [out, in].T + bias [out] → [T, out], of any strides. Invariant in float32, for `padded_rows` rows."""

    @abstractmethod
    def packed_linear(self, x: torch.Tensor, weight: PackedTensor, bias: torch.Tensor | None) -> torch.Tensor:
        """`linear` with a quantised weight."""

    @abstractmethod
    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """x / sqrt(mean(x²) + eps) * weight over the last axis, mean in float32. Invariant."""

    @abstractmethod
    def layer_norm(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float
    ) -> torch.Tensor:
        """(x - mean(x)) / sqrt(var(x) + eps) * weight + bias over the last axis, in float32. Invariant."""

    @abstractmethod
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
        """Normalise (where `norm` is given) and rotate the q and k heads of `qkv` [T', (N + 2K) · D], write k and v of the
        first plan.rows rows to `pool` [pages, 2, K, 32, D]; return q [plan.rows, N, D].

        `norm` [N + K, D] is the weight of each head's RMSNorm; `cos` and signed `sin` are [T', 1, R], R at most D: the first
        R elements of each head turn (None: nothing does). `qkv` is consumed.
        """

    @abstractmethod
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
        """Causal attention of q [plan.rows, N, D] to the paged context of each row's sequence → [padded rows, N · D].

        Scores are q · k * `scale` (None: 1 / sqrt(D)), then `soft_cap` * tanh(score / `soft_cap`) where it is given. `sinks`
        [N] is one more score of each head, which takes its share of the softmax and has no value (gpt-oss).
        Rows past plan.rows are zero. Invariant: a sequence's result depends on its own rows, length and pages alone.
        """

    @abstractmethod
    def gated(self, gate: torch.Tensor, up: torch.Tensor | None, activation: str) -> torch.Tensor:
        """activation(gate) * up (None: activation(gate)), elementwise; `gate` is consumed. Activations: silu, gelu,
        gelu_tanh, relu. Invariant."""
