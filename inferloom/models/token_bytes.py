"""Bytes of weights that a token reads: what the memory's bandwidth is divided by for one user."""

from __future__ import annotations

from collections.abc import Iterator

from inferloom.formats.layout import HALVES_LOWER, HALVES_UPPER, Layout
from inferloom.formats.layouts import PackedTensor
from inferloom.models.decoder import DecoderWeights, Layer
from inferloom.models.linears import Linear, LinearLike, PackedLinear
from inferloom.models.mlp import MLP, Mixture


def token_bytes(weights: DecoderWeights, *, screened: bool) -> int:
    """Of the matrices that a greedy token passes. `screened`: the executor reads of the output matrix what bounds its
    logits, and hardly anything of the rest."""
    layers = sum(_size(linear) for layer in weights.layers for linear in _attention(layer))
    return round(
        layers + sum(_mlp(layer.mlp) for layer in weights.layers) + _head(weights, screened=screened)
    )


def _attention(layer: Layer) -> Iterator[LinearLike]:
    yield from (layer.q, layer.k, layer.v, layer.o)


def _mlp(mlp: MLP | Mixture) -> float:
    if isinstance(mlp, MLP):
        return sum(_size(linear) for linear in (mlp.gate, mlp.up, mlp.down) if linear is not None)
    total = _size(mlp.router) + mlp.per_token / len(mlp.experts) * sum(_mlp(expert) for expert in mlp.experts)
    if mlp.shared is not None and mlp.shared_gate is not None:
        total += _mlp(mlp.shared) + _size(mlp.shared_gate)
    return total


def _head(weights: DecoderWeights, *, screened: bool) -> float:
    size = _size(weights.head)
    if not screened:
        return size
    if weights.screen is not None:
        return weights.screen.nbytes
    matrix = weights.head.weight if isinstance(weights.head, PackedLinear) else None
    if isinstance(matrix, PackedTensor) and matrix.layout is Layout.Q8_HALVES:
        return size * HALVES_UPPER / (HALVES_UPPER + HALVES_LOWER)
    return size


def _size(linear: LinearLike) -> int:
    assert isinstance(linear, Linear | PackedLinear), type(linear)
    return linear.weight.nbytes
