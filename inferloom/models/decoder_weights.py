"""The decoder's tensors, found where the family's `Names` say they are."""

from __future__ import annotations

import re

import torch

from inferloom.kernels.base import Kernels
from inferloom.models.decoder import DecoderWeights, Layer
from inferloom.models.families import DECODER_FAMILIES
from inferloom.models.families.names import Names
from inferloom.models.fused import Matrix, split_heads, split_rows, transposed
from inferloom.models.linears import LinearLike, linear_of
from inferloom.models.mlp import MLP, Mixture
from inferloom.models.norms import LayerNorm, Norm, RMSNorm
from inferloom.models.spec import DecoderSpec
from inferloom.models.tensors import TensorReader


def read_decoder(spec: DecoderSpec, reader: TensorReader, kernels: Kernels) -> DecoderWeights:
    """All weights of the model; raises `InvalidFormat` naming a tensor that is missing, misshapen or unknown.

    A matrix is what `reader.take_matrix` hands out, float or quantised.
    """
    names = DECODER_FAMILIES[spec.architecture].names
    return _Layers(spec, names, reader, kernels).read()


class _Layers:
    """Reads a model part by part. Names are relative to the checkpoint's prefix, except for the head's."""

    def __init__(self, spec: DecoderSpec, names: Names, reader: TensorReader, kernels: Kernels) -> None:
        self._spec = spec
        self._names = names
        self._reader = reader
        self._kernels = kernels
        leading = (p for p in names.prefixes if f"{p}{names.embedding}.weight" in reader)
        self._prefix = next(leading, names.prefixes[0])

    def read(self) -> DecoderWeights:
        spec, names, reader = self._spec, self._names, self._reader
        embedding = reader.take_matrix(
            f"{self._prefix}{names.embedding}.weight", spec.vocab_size, spec.hidden_size
        )
        positions = None
        if spec.learned_positions:
            positions = reader.take(
                f"{self._prefix}{names.positions}.weight", spec.max_positions, spec.hidden_size
            )
        layers = tuple(self._layer(i) for i in range(spec.layers))
        norm = self._norm(names.norm)
        assert norm is not None
        ignored = names.ignored
        if spec.tied_embeddings:
            name = f"{self._prefix}{names.embedding}"
            head: LinearLike = linear_of(embedding, None, self._kernels)
            ignored += tuple(re.escape(f"{name}.weight") for name in names.heads)
        else:
            name = next((name for name in names.heads if f"{name}.weight" in reader), names.heads[0])
            head = linear_of(
                reader.take_matrix(f"{name}.weight", spec.vocab_size, spec.hidden_size), None, self._kernels
            )
        screen = reader.take_screen(name, spec.vocab_size, spec.hidden_size)
        reader.finish(ignore=ignored)
        return DecoderWeights(
            embedding=embedding, positions=positions, layers=layers, norm=norm, head=head, screen=screen
        )

    def _layer(self, i: int) -> Layer:
        spec, names = self._spec, self._names
        base = names.layer.format(i)
        q, k, v = self._qkv(base)
        heads, row_norms = spec.qk_norm == "head", spec.qk_norm == "row"
        return Layer(
            input_norm=self._norm(f"{base}.{names.input_norm}") if spec.input_norms else None,
            q=q,
            k=k,
            v=v,
            o=self._linear(
                f"{base}.{names.o}", spec.hidden_size, spec.heads * spec.head_dim, bias=spec.o_bias
            ),
            head_norm=self._head_norm(base) if heads else None,
            q_norm=self._norm(f"{base}.{names.q_norm}", spec.heads * spec.head_dim) if row_norms else None,
            k_norm=self._norm(f"{base}.{names.k_norm}", spec.kv_heads * spec.head_dim) if row_norms else None,
            attention_out_norm=self._norm(f"{base}.{names.attention_out_norm}")
            if spec.output_norms
            else None,
            mlp_norm=self._norm(f"{base}.{names.mlp_norm}") if spec.input_norms else None,
            mlp=self._mixture(base) if spec.mixture and spec.mixture.layers[i] else self._mlp(base),
            mlp_out_norm=self._norm(f"{base}.{names.mlp_out_norm}") if spec.output_norms else None,
            rope=spec.ropes[i],
            window=spec.windows[i],
        )

    # --- attention --------------------------------------------------------------------------------------------------

    def _qkv(self, base: str) -> list[LinearLike]:
        spec, names = self._spec, self._names
        sizes = [heads * spec.head_dim for heads in (spec.heads, spec.kv_heads, spec.kv_heads)]
        if not names.qkv:
            parts = zip((names.q, names.k, names.v), sizes, strict=True)
            return [
                self._linear(f"{base}.{name}", size, spec.hidden_size, bias=spec.qkv_bias)
                for name, size in parts
            ]
        matrix = self._matrix(f"{base}.{names.qkv}", sum(sizes), spec.hidden_size)
        bias = self._bias(f"{base}.{names.qkv}", sum(sizes)) if spec.qkv_bias else None
        biases: list[torch.Tensor | None] = [None] * 3
        if names.qkv_order == "heads":
            matrices = split_heads(matrix, spec.heads, self._reader.dtype)
            if bias is not None:
                biases = [part.flatten() for part in bias.view(spec.heads, 3, -1).unbind(1)]
        else:
            matrices = split_rows(matrix, sizes, self._reader.dtype)
            if bias is not None:
                biases = list(bias.split_with_sizes(sizes))
        return [linear_of(m, b, self._kernels) for m, b in zip(matrices, biases, strict=True)]

    def _head_norm(self, base: str) -> torch.Tensor:
        """[heads + kv_heads, head_dim]: the two norms' weights, one row a head, so that one pass does both."""
        spec, names = self._spec, self._names
        q = self._norm_weight(f"{base}.{names.q_norm}", spec.head_dim)
        k = self._norm_weight(f"{base}.{names.k_norm}", spec.head_dim)
        return torch.cat((q.expand(spec.heads, -1), k.expand(spec.kv_heads, -1)))

    # --- the MLP ----------------------------------------------------------------------------------------------------

    def _mlp(self, base: str) -> MLP:
        spec, names = self._spec, self._names
        hidden, inner, bias = spec.hidden_size, spec.intermediate_size, spec.mlp_bias
        if names.gate_up:
            matrix = self._matrix(f"{base}.{names.gate_up}", 2 * inner, hidden)
            halves = split_rows(matrix, [inner, inner], self._reader.dtype)
            gate, up = (linear_of(half, None, self._kernels) for half in halves)
            down = self._linear(f"{base}.{names.down}", hidden, inner, bias=False)
            return MLP(gate, up, down, spec.activation, self._kernels)
        return MLP(
            gate=self._linear(f"{base}.{names.gate}", inner, hidden, bias=bias) if spec.gated else None,
            up=self._linear(f"{base}.{names.up}", inner, hidden, bias=bias),
            down=self._linear(f"{base}.{names.down}", hidden, inner, bias=bias),
            activation=spec.activation,
            kernels=self._kernels,
        )

    def _mixture(self, base: str) -> Mixture:
        spec, names, mixture = self._spec, self._names, self._spec.mixture
        assert mixture is not None
        shared = mixture.shared_size
        return Mixture(
            router=self._linear(f"{base}.{names.router}", mixture.experts, spec.hidden_size, bias=False),
            experts=tuple(
                self._expert(f"{base}.{names.expert.format(n)}", mixture.size) for n in range(mixture.experts)
            ),
            per_token=mixture.per_token,
            normalised=mixture.normalised,
            shared=self._expert(f"{base}.{names.shared_expert}", shared) if shared else None,
            shared_gate=self._linear(f"{base}.{names.shared_gate}", 1, spec.hidden_size, bias=False)
            if shared
            else None,
            kernels=self._kernels,
        )

    def _expert(self, base: str, inner: int) -> MLP:
        hidden = self._spec.hidden_size
        return MLP(
            gate=self._linear(f"{base}.gate_proj", inner, hidden, bias=False),
            up=self._linear(f"{base}.up_proj", inner, hidden, bias=False),
            down=self._linear(f"{base}.down_proj", hidden, inner, bias=False),
            activation=self._spec.activation,
            kernels=self._kernels,
        )

    # --- tensors ----------------------------------------------------------------------------------------------------

    def _linear(self, name: str, out_features: int, in_features: int, *, bias: bool) -> LinearLike:
        matrix = self._matrix(name, out_features, in_features)
        return linear_of(matrix, self._bias(name, out_features) if bias else None, self._kernels)

    def _matrix(self, name: str, out_features: int, in_features: int) -> Matrix:
        full = f"{self._prefix}{name}.weight"
        if self._names.transposed:
            return transposed(self._reader.take_matrix(full, in_features, out_features), self._reader.dtype)
        return self._reader.take_matrix(full, out_features, in_features)

    def _bias(self, name: str, size: int) -> torch.Tensor:
        return self._reader.take(f"{self._prefix}{name}.bias", size)

    def _norm(self, name: str, size: int | None = None) -> Norm:
        spec, size = self._spec, size or self._spec.hidden_size
        weight = self._norm_weight(name, size)
        if spec.norm_kind == "rms":
            return RMSNorm(weight, spec.norm_eps, self._kernels)
        return LayerNorm(weight, self._bias(name, size), spec.norm_eps, self._kernels)

    def _norm_weight(self, name: str, size: int) -> torch.Tensor:
        """In the compute dtype; 1 + w in float32, because bfloat16 near 1 has hardly any digits left."""
        full = f"{self._prefix}{name}.weight"
        if self._spec.norm_offset:
            return self._reader.take(full, size, dtype=torch.float32) + self._spec.norm_offset
        return self._reader.take(full, size)
