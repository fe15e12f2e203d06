"""What families have in common: the keys of config.json that mean the same in most of them."""

from __future__ import annotations

from typing import Any, cast

from inferloom.errors import InvalidFormat, Unsupported
from inferloom.models.config_json import number_of, size_of
from inferloom.models.rope import RopeSpec
from inferloom.models.spec import Activation, DecoderSpec

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
}
KINDS_OF_LAYER = ("full_attention", "sliding_attention")


def base_spec(
    config: dict[str, Any],
    *,
    theta: float = 10_000.0,
    partial_rotary: float | None = None,
    max_positions: int = 2048,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    norm_eps: float = 1e-6,
    tied: bool = False,
) -> DecoderSpec:
    """A Llama without biases or windows, from the keys that Llama and its relatives share.

    The keywords are what a family means where config.json says nothing; `kv_heads` None: as many as heads, `head_dim`
    None: hidden_size / heads, `partial_rotary` as in `RopeSpec.from_config`.
    """
    hidden, heads = size_of(config, "hidden_size"), size_of(config, "num_attention_heads")
    head_dim = size_of(config, "head_dim", head_dim or hidden // heads)
    kv_heads = size_of(config, "num_key_value_heads", kv_heads or heads)
    layers = size_of(config, "num_hidden_layers")
    if heads % kv_heads:
        raise InvalidFormat(
            f"config.json: {heads} attention heads cannot share {kv_heads} key-value heads evenly"
        )
    if head_dim % 2:
        raise InvalidFormat(f"config.json: head_dim must be even to be rotated, not {head_dim}")
    max_positions = size_of(config, "max_position_embeddings", max_positions)
    rope = RopeSpec.from_config(
        config, head_dim=head_dim, max_positions=max_positions, theta=theta, partial=partial_rotary
    )
    return DecoderSpec(
        architecture=config["architectures"][0],
        vocab_size=size_of(config, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=size_of(config, "intermediate_size"),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        max_positions=max_positions,
        norm_eps=number_of(config, "rms_norm_eps", norm_eps),
        attention_scale=head_dim**-0.5,
        ropes=(rope,) * layers,
        windows=(None,) * layers,
        activation=activation_of(config, "hidden_act", "silu"),
        tied_embeddings=bool(config.get("tie_word_embeddings", tied)),
    )


def activation_of(config: dict[str, Any], key: str, default: str) -> Activation:
    name = config.get(key) or default
    if name not in _ACTIVATIONS:
        raise Unsupported(f"{key} {name!r}", f"this engine knows {', '.join(_ACTIVATIONS)}")
    return cast(Activation, _ACTIVATIONS[name])


def windows_of(
    config: dict[str, Any], layers: int, default_kinds: list[str], *, default: int | None = None
) -> tuple[int | None, ...]:
    """`sliding_window` in the layers that `layer_types`, or the family's own kinds, name sliding."""
    window = config.get("sliding_window", default)
    if window is None:
        return (None,) * layers
    window = size_of(config, "sliding_window", default)
    kinds = kinds_of(config, layers, default_kinds)
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def kinds_of(config: dict[str, Any], layers: int, default: list[str]) -> list[str]:
    """`layer_types`, checked; `default` where config.json has none."""
    kinds = config.get("layer_types")
    if kinds is None:
        return default
    if not isinstance(kinds, list) or len(kinds) != layers:
        count = len(kinds) if isinstance(kinds, list) else "no"
        raise InvalidFormat(f"config.json: layer_types has {count} entries for {layers} layers")
    unknown = sorted({str(kind) for kind in kinds} - set(KINDS_OF_LAYER))
    if unknown:
        raise Unsupported(
            f"layer type {unknown[0]!r}", "this engine knows full_attention and sliding_attention"
        )
    return kinds
