"""A decoder's weights as the native step sees them: addresses of what stays mapped, and small float32 copies."""

from __future__ import annotations

from typing import Any

import torch

from inferloom.formats.layouts import Layout, PackedTensor
from inferloom.kernels.native import library
from inferloom.models.decoder import DecoderWeights, Layer
from inferloom.models.linears import Linear, LinearLike, PackedLinear
from inferloom.models.mlp import MLP
from inferloom.models.norms import Norm
from inferloom.models.rope import RopeSpec
from inferloom.models.spec import DecoderSpec

ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2}  # as enum Activation of csrc/operators.h
_FLOATS = {torch.float32: Layout.F32, torch.float16: Layout.F16, torch.bfloat16: Layout.BF16}


class NativeWeights:
    """`spec` and `weights` are what the extension's `Decoder` is made of. They hold addresses: this object keeps what lies
    there, and must live as long as the decoder.

    `ropes`: the distinct ropes; a layer names one by its place.
    """

    def __init__(self, spec: DecoderSpec, weights: DecoderWeights) -> None:
        self._native = library.load()
        self._kept: list[torch.Tensor] = []
        self._layouts: set[Layout] = set()
        self._spec = spec
        self.ropes: list[RopeSpec] = list(dict.fromkeys(rope for rope in spec.ropes if rope is not None))
        self.weights = self._native.DecoderWeights()
        self.weights.embedding = self._matrix(weights.embedding, None)
        if weights.positions is not None:
            self.weights.positions = self._matrix(weights.positions, None)
        for layer in weights.layers:
            self.weights.add_layer(self._layer(layer))
        self.weights.norm = self._norm(weights.norm)
        self.weights.head = self._linear(weights.head)
        if weights.screen is not None:
            self.weights.screen = self._matrix(weights.screen, None)
        self.spec = self._native_spec()

    def _native_spec(self) -> Any:
        spec, native = self._spec, self._native.DecoderSpec()
        for name in ("vocab_size", "hidden_size", "intermediate_size", "heads", "kv_heads", "head_dim"):
            setattr(native, name, getattr(spec, name))
        for name in (
            "norm_eps",
            "attention_scale",
            "residual_factor",
            "logit_factor",
            "parallel_residual",
        ):
            setattr(native, name, getattr(spec, name))
        native.activation = ACTIVATIONS[spec.activation]
        native.layer_norm = spec.norm_kind == "layer"
        native.norm_whole_rows = spec.qk_norm == "row"
        native.embedding_factor = float(torch.tensor(spec.embedding_factor, dtype=torch.bfloat16))
        native.attention_soft_cap = spec.attention_soft_cap or 0.0
        native.logit_soft_cap = spec.logit_soft_cap or 0.0
        # One scale for more activations costs some accuracy, which only models that were quantised here for speed pay
        # (docs/decisions/043, 045).
        quantised = {layout for layout in self._layouts if layout.quantised}
        rows = {Layout.Q8_ROW, Layout.Q8_HALVES}
        here = (bool(quantised) and quantised <= rows) or Layout.Q4Z_32 in quantised
        native.int8_group = 128 if here else 32
        return native

    def _layer(self, layer: Layer) -> Any:
        native, mlp = self._native.DecoderLayer(), layer.mlp
        assert isinstance(mlp, MLP), "`supports` refuses mixtures"
        for name in ("input_norm", "attention_out_norm", "mlp_norm", "mlp_out_norm"):
            norm = getattr(layer, name)
            if norm is not None:
                setattr(native, name, self._norm(norm))
        for name in ("q", "k", "v", "o"):
            setattr(native, name, self._linear(getattr(layer, name)))
        if mlp.gate is None:
            native.gate = self._linear(mlp.up)
        else:
            native.gate, native.up = self._linear(mlp.gate), self._linear(mlp.up)
        native.down = self._linear(mlp.down)
        if layer.head_norm is not None:
            native.set_q_norm(self._floats(layer.head_norm[0]))
            native.set_k_norm(self._floats(layer.head_norm[self._spec.heads]))
        elif layer.q_norm is not None and layer.k_norm is not None:
            native.set_q_norm(self._floats(layer.q_norm.weight))
            native.set_k_norm(self._floats(layer.k_norm.weight))
        native.window = layer.window or 0
        native.rope = -1 if layer.rope is None else self.ropes.index(layer.rope)
        return native

    def _linear(self, linear: LinearLike) -> Any:
        assert isinstance(linear, Linear | PackedLinear), type(linear)
        return self._matrix(linear.weight, linear.bias)

    def _matrix(self, matrix: torch.Tensor | PackedTensor, bias: torch.Tensor | None) -> Any:
        if isinstance(matrix, PackedTensor):
            layout, data = matrix.layout, matrix.data
        else:
            layout, data = _FLOATS[matrix.dtype], matrix.contiguous()
        self._layouts.add(layout)
        rows, columns = matrix.shape
        return self._native.Linear(
            int(layout), rows, columns, self._keep(data), self._floats(bias) if bias is not None else 0
        )

    def _norm(self, norm: Norm) -> Any:
        return self._native.Norm(
            self._floats(norm.weight), self._floats(norm.bias) if norm.bias is not None else 0
        )

    def _floats(self, tensor: torch.Tensor) -> int:
        """The address of a float32 copy, or of the tensor itself where it is that already."""
        return self._keep(tensor.float().contiguous())

    def _keep(self, tensor: torch.Tensor) -> int:
        self._kept.append(tensor)
        return tensor.data_ptr()
