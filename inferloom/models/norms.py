"""Norms as classes, so that one kind can take another's place without an `if` in the decoder."""

from __future__ import annotations

import torch

from inferloom.kernels.base import Kernels


class RMSNorm:
    """x / sqrt(mean(x²) + eps) * weight. `weight` [features] is in the compute dtype, or float32."""

    bias: torch.Tensor | None = None

    def __init__(self, weight: torch.Tensor, eps: float, kernels: Kernels) -> None:
        self.weight = weight
        self.eps = eps
        self._norm = kernels.rms_norm

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._norm(x, self.weight, self.eps)


class LayerNorm:
    """(x - mean) / sqrt(variance + eps) * weight + bias, both [features]."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, eps: float, kernels: Kernels) -> None:
        self.weight = weight
        self.bias = bias
        self.eps = eps
        self._norm = kernels.layer_norm

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._norm(x, self.weight, self.bias, self.eps)


Norm = RMSNorm | LayerNorm


def normed(x: torch.Tensor, norm: Norm | None) -> torch.Tensor:
    """norm(x), or x itself where the model has no norm in that place."""
    return x if norm is None else norm(x)
