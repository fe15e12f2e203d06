"""Linear layers as classes, so that a quantised one can take a float one's place without an `if` in the decoder."""

from __future__ import annotations

from typing import Protocol

import torch

from inferloom.formats.layouts import PackedTensor
from inferloom.kernels.base import Kernels


class LinearLike(Protocol):
    """Anything that maps [T, in_features] to [T, out_features] in the dtype of its input."""

    in_features: int
    out_features: int

    def __call__(self, x: torch.Tensor) -> torch.Tensor: ...


class Linear:
    """x @ weight.T + bias with a float weight [out_features, in_features], which is usually a view of a mapped file."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, kernels: Kernels) -> None:
        self.weight = weight
        self.bias = bias
        self.out_features, self.in_features = weight.shape
        self._linear = kernels.linear

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._linear(x, self.weight, self.bias)


class PackedLinear:
    """The same with a quantised weight in one of the layouts that the kernels read."""

    def __init__(self, weight: PackedTensor, bias: torch.Tensor | None, kernels: Kernels) -> None:
        self.weight = weight
        self.bias = bias
        self.out_features, self.in_features = weight.shape
        self._linear = kernels.packed_linear

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._linear(x, self.weight, self.bias)


def linear_of(
    weight: torch.Tensor | PackedTensor, bias: torch.Tensor | None, kernels: Kernels
) -> Linear | PackedLinear:
    """The layer for what `TensorReader.take_matrix` handed out."""
    if isinstance(weight, PackedTensor):
        return PackedLinear(weight, bias, kernels)
    return Linear(weight, bias, kernels)
