"""BERT and RoBERTa encoders that make embeddings: ragged, so that nothing is computed for padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from inferloom.errors import Unsupported
from inferloom.kernels.base import Kernels
from inferloom.models.batch import Embedder
from inferloom.models.config_json import architecture_of, size_of
from inferloom.models.linears import Linear, LinearLike
from inferloom.models.pooling import Pooling
from inferloom.models.tensors import TensorReader
from inferloom.types import ModelCard

_ACTIVATIONS = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}
# Buffers and heads that checkpoints carry and embeddings do not need.
_IGNORED = (r".*embeddings\.position_ids", r".*pooler\..*", r"cls\..*", r"lm_head\..*")


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """Derived from config.json. `first_position`: of the position table's rows, that of a text's first token."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    norm_eps: float
    positions: int
    first_position: int
    token_types: int
    gelu: str

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> EncoderSpec:
        """Raises `Unsupported` and `InvalidFormat` as `DecoderSpec.from_config` does."""
        architecture = architecture_of(config)
        activation = config.get("hidden_act", "gelu")
        if activation not in _ACTIVATIONS:
            raise Unsupported(f"hidden_act {activation!r}", f"encoders know {', '.join(_ACTIVATIONS)}")
        embedding = config.get("position_embedding_type") or "absolute"
        if embedding != "absolute":
            raise Unsupported(
                f"position_embedding_type {embedding!r}", "encoders know absolute positions only"
            )
        if config.get("is_decoder"):
            raise Unsupported(
                f"{architecture} as a decoder (is_decoder)", "this engine makes embeddings with it"
            )
        # RoBERTa numbers positions from padding_idx + 1.
        pad = config.get("pad_token_id")
        first = 0 if architecture == "BertModel" else (1 if pad is None else int(pad)) + 1
        return cls(
            architecture=architecture,
            vocab_size=size_of(config, "vocab_size"),
            hidden_size=size_of(config, "hidden_size"),
            intermediate_size=size_of(config, "intermediate_size"),
            layers=size_of(config, "num_hidden_layers"),
            heads=size_of(config, "num_attention_heads"),
            norm_eps=float(config.get("layer_norm_eps", 1e-12)),
            positions=size_of(config, "max_position_embeddings", 512),
            first_position=first,
            token_types=size_of(config, "type_vocab_size", 2),
            gelu=_ACTIVATIONS[activation],
        )

    @property
    def longest(self) -> int:
        """Tokens that the position table has rows for."""
        return self.positions - self.first_position


@dataclass(frozen=True, slots=True)
class Norm:
    weight: torch.Tensor
    bias: torch.Tensor


@dataclass(frozen=True, slots=True)
class EncoderLayer:
    q: LinearLike
    k: LinearLike
    v: LinearLike
    o: LinearLike
    attention_norm: Norm
    inner: LinearLike
    outer: LinearLike
    norm: Norm


class Encoder(Embedder):
    """Post-norm transformer over whole texts. A text's embedding does not depend on the texts beside it."""

    def __init__(
        self,
        spec: EncoderSpec,
        reader: TensorReader,
        *,
        pooling: Pooling,
        kernels: Kernels,
        dtype: torch.dtype,
    ) -> None:
        self.spec = spec
        self._kernels = kernels
        self._dtype = dtype
        self._pooling = pooling
        hidden = spec.hidden_size
        self._words = reader.take("embeddings.word_embeddings.weight", spec.vocab_size, hidden)
        self._positions = reader.take("embeddings.position_embeddings.weight", spec.positions, hidden)
        self._type = reader.take("embeddings.token_type_embeddings.weight", spec.token_types, hidden)[0]
        self._norm = _norm(reader, "embeddings.LayerNorm", hidden)
        self._layers = tuple(_layer(spec, reader, i, kernels) for i in range(spec.layers))
        reader.finish(ignore=_IGNORED)

    def describe(self, card: ModelCard) -> None:
        """Set what the model says of itself; called once, by the loader."""
        self.card = card

    @property
    def dimensions(self) -> int:
        return self.spec.hidden_size * len(self._pooling.modes)

    @torch.inference_mode()
    def embed(self, prompts: list[list[int]]) -> torch.Tensor:
        # Texts of one length are attended to together, so they are brought next to each other.
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        runs: list[tuple[int, int, int]] = []  # first row, texts, length
        ids: list[int] = []
        positions: list[int] = []
        for i in order:
            length = len(prompts[i])
            if runs and runs[-1][2] == length:
                runs[-1] = (runs[-1][0], runs[-1][1] + 1, length)
            else:
                runs.append((len(ids), 1, length))
            ids += prompts[i]
            positions += range(self.spec.first_position, self.spec.first_position + length)
        padding = self._kernels.padded_rows(len(ids), self._dtype) - len(ids)
        device = self._words.device
        x = F.embedding(torch.tensor(ids + [0] * padding, device=device), self._words)
        x = (
            x
            + self._type
            + F.embedding(torch.tensor(positions + [0] * padding, device=device), self._positions)
        )
        x = self._normed(x, self._norm)
        for layer in self._layers:
            attended = self._attend(layer.q(x), layer.k(x), layer.v(x), runs)
            x = self._normed(layer.o(attended) + x, layer.attention_norm)
            inner = F.gelu(layer.inner(x), approximate=self.spec.gelu)
            x = self._normed(layer.outer(inner) + x, layer.norm)
        pooled = torch.cat(
            [
                self._pooling.pool(x[first : first + texts * length].view(texts, length, -1))
                for first, texts, length in runs
            ]
        )
        out = torch.empty_like(pooled)
        out[torch.tensor(order, device=device)] = pooled
        return out.cpu()

    def _normed(self, x: torch.Tensor, norm: Norm) -> torch.Tensor:
        return F.layer_norm(x, (x.shape[1],), norm.weight, norm.bias, self.spec.norm_eps)

    def _attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, runs: list[tuple[int, int, int]]
    ) -> torch.Tensor:
        out = torch.zeros_like(q)
        for first, texts, length in runs:
            rows = slice(first, first + texts * length)
            shape = (texts, length, self.spec.heads, -1)
            mixed = F.scaled_dot_product_attention(
                q[rows].view(shape).transpose(1, 2),
                k[rows].view(shape).transpose(1, 2),
                v[rows].view(shape).transpose(1, 2),
            )
            out[rows].view(shape).copy_(mixed.transpose(1, 2))
        return out


def _norm(reader: TensorReader, name: str, size: int) -> Norm:
    return Norm(reader.take(f"{name}.weight", size), reader.take(f"{name}.bias", size))


def _layer(spec: EncoderSpec, reader: TensorReader, i: int, kernels: Kernels) -> EncoderLayer:
    base = f"encoder.layer.{i}"
    hidden, inner = spec.hidden_size, spec.intermediate_size

    def linear(name: str, out_features: int, in_features: int) -> Linear:
        return Linear(
            reader.take(f"{base}.{name}.weight", out_features, in_features),
            reader.take(f"{base}.{name}.bias", out_features),
            kernels,
        )

    return EncoderLayer(
        q=linear("attention.self.query", hidden, hidden),
        k=linear("attention.self.key", hidden, hidden),
        v=linear("attention.self.value", hidden, hidden),
        o=linear("attention.output.dense", hidden, hidden),
        attention_norm=_norm(reader, f"{base}.attention.output.LayerNorm", hidden),
        inner=linear("intermediate.dense", inner, hidden),
        outer=linear("output.dense", hidden, inner),
        norm=_norm(reader, f"{base}.output.LayerNorm", hidden),
    )
