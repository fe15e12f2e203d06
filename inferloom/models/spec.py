"""What a decoder is, as data: the one dataclass that steers every executor. `families` derives it from config.json."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from inferloom.models.rope import RopeSpec

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]


@dataclass(frozen=True, slots=True)
class MixtureSpec:
    """The mixture of experts that stands in place of the MLP in `layers`. Sizes are inner sizes of gated MLPs without bias.

    A row goes to the `per_token` experts with the largest softmax over all router logits (float32); they are weighted
    by that softmax, divided by its sum over the chosen ones where `normalised`. The shared expert sees every row, scaled
    by the sigmoid of a gate of its own.
    """

    experts: int
    per_token: int
    size: int
    normalised: bool
    shared_size: int | None  # None: no shared expert
    layers: tuple[bool, ...]  # of each layer: whether it has experts; otherwise it has the plain MLP


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """Sizes are in elements, windows in tokens (a window of w sees itself and the w - 1 tokens before).

    One layer over the residual stream x, where every norm and factor that is not there changes nothing:

        x = embedding[token] * embedding_factor (+ learned position)
        h = input_norm(x)
        q, k, v = linears of h with `qkv_bias`; q and k normalised as `qk_norm` says, then turned as `ropes[layer]` says
        a = attention_out_norm(o(softmax(cap(q k * attention_scale, attention_soft_cap)) v))
        x = x + a * residual_factor
        h = mlp_norm(x)                              (parallel_residual: of the x that input_norm saw)
        m = mlp_out_norm(down(activation(gate h) * up h))           (not `gated`: down(activation(up h)))
        x = x + m * residual_factor
        logits = cap(head(norm(x)) * logit_factor, logit_soft_cap),      cap(y, c) = c * tanh(y / c)
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int  # inner size of the MLP
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    max_positions: int
    norm_eps: float  # of every norm
    attention_scale: float
    ropes: tuple[
        RopeSpec | None, ...
    ]  # of each layer; None: positions do not turn. At most two distinct ones
    windows: tuple[int | None, ...]  # of each layer; None: all that came before
    activation: Activation
    tied_embeddings: bool = False  # the head is the embedding
    learned_positions: bool = False  # a second table [max_positions, hidden_size] is added to the embedding
    norm_kind: Literal["rms", "layer"] = "rms"  # "layer": mean subtracted, weight and bias
    norm_offset: float = (
        0.0  # added to RMSNorm weights as they are read: 1 where the file holds w and means 1 + w
    )
    input_norms: bool = True  # whether layers have input_norm and mlp_norm
    output_norms: bool = False  # whether layers have attention_out_norm and mlp_out_norm
    qk_norm: Literal["head", "row"] | None = (
        None  # RMSNorm of each head [head_dim], or of all heads as one row
    )
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False  # of gate, up and down
    gated: bool = True
    parallel_residual: bool = False
    embedding_factor: float = 1.0  # rounded to the compute dtype first, as the reference implementations do
    residual_factor: float = 1.0
    logit_factor: float = 1.0
    attention_soft_cap: float | None = None
    logit_soft_cap: float | None = None
    mixture: MixtureSpec | None = None

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> DecoderSpec:
        """From a parsed config.json. Raises `Unsupported` naming an unknown architecture or option, `InvalidFormat` for
        a missing or contradictory number."""
        from inferloom.models.families import spec_of  # the families import this module

        return spec_of(config)

    def for_context(self, length: int) -> DecoderSpec:
        """The same model served with contexts of at most `length` tokens: LongRoPE turns differently in long ones."""
        return replace(self, ropes=tuple(rope and rope.for_context(length) for rope in self.ropes))
