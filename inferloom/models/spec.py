"""What a decoder is, derived from its checkpoint's config.json: the one dataclass that steers `Decoder`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from inferloom.errors import InvalidFormat, Unsupported
from inferloom.models.rope import RopeSpec

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}


@dataclass(frozen=True, slots=True)
class Family:
    """What an architecture fixes that its config.json does not say."""

    qkv_bias: bool | None  # None: `attention_bias` says, for q, k, v and o alike
    qk_norm: bool = False
    sliding: str = (
        "never"  # "always": wherever sliding_window is set; "flagged": use_sliding_window and layer_types
    )
    rope_theta: float = 10_000.0
    max_positions: int = 2048
    kv_heads: int | None = None  # where num_key_value_heads is not written; None: as many as heads
    head_dim: int | None = None  # where head_dim is not written; None: hidden_size / heads
    norm_eps: float = 1e-6
    mlp_bias: bool = False  # whether `mlp_bias` is a key of this family


DECODER_FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": Family(qkv_bias=None, mlp_bias=True),
    "MistralForCausalLM": Family(qkv_bias=False, sliding="always", max_positions=131_072, kv_heads=8),
    "Qwen2ForCausalLM": Family(qkv_bias=True, sliding="flagged", max_positions=32_768, kv_heads=32),
    "Qwen3ForCausalLM": Family(
        qkv_bias=None, qk_norm=True, sliding="flagged", max_positions=32_768, kv_heads=32, head_dim=128
    ),
}
ENCODER_FAMILIES = ("BertModel", "RobertaModel", "XLMRobertaModel")


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """Sizes are in elements, windows in tokens (a window of w sees itself and the w - 1 tokens before)."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    rope: RopeSpec
    max_positions: int
    tied_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    activation: str  # "silu", "gelu" or "gelu_tanh"
    windows: tuple[int | None, ...]  # of each layer

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> DecoderSpec:
        """From a parsed config.json. Raises `Unsupported` naming an unknown architecture or option, `InvalidFormat` for
        a missing or contradictory number."""
        architecture = architecture_of(config)
        family = DECODER_FAMILIES.get(architecture)
        if family is None:
            raise unknown_architecture(architecture)
        hidden, heads = size_of(config, "hidden_size"), size_of(config, "num_attention_heads")
        head_dim = size_of(config, "head_dim", family.head_dim or hidden // heads)
        kv_heads = size_of(config, "num_key_value_heads", family.kv_heads or heads)
        layers = size_of(config, "num_hidden_layers")
        if heads % kv_heads:
            raise InvalidFormat(
                f"config.json: {heads} attention heads cannot share {kv_heads} key-value heads evenly"
            )
        if head_dim % 2:
            raise InvalidFormat(f"config.json: head_dim must be even to be rotated, not {head_dim}")
        activation = config.get("hidden_act", "silu")
        if activation not in ACTIVATIONS:
            raise Unsupported(f"hidden_act {activation!r}", f"this engine knows {', '.join(ACTIVATIONS)}")
        if config.get("quantization_config"):
            method = config["quantization_config"].get("quant_method", "unnamed")
            raise Unsupported(f"a checkpoint quantised with {method}", "only float weights can be loaded yet")
        attention_bias = bool(config.get("attention_bias", False))
        max_positions = size_of(config, "max_position_embeddings", family.max_positions)
        return cls(
            architecture=architecture,
            vocab_size=size_of(config, "vocab_size"),
            hidden_size=hidden,
            intermediate_size=size_of(config, "intermediate_size"),
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            norm_eps=float(config.get("rms_norm_eps", family.norm_eps)),
            rope=RopeSpec.from_config(
                config, dim=head_dim, max_positions=max_positions, theta=family.rope_theta
            ),
            max_positions=max_positions,
            tied_embeddings=bool(config.get("tie_word_embeddings", False)),
            qkv_bias=attention_bias if family.qkv_bias is None else family.qkv_bias,
            o_bias=attention_bias if family.qkv_bias is None else False,
            mlp_bias=bool(config.get("mlp_bias", False)) and family.mlp_bias,
            qk_norm=family.qk_norm,
            activation=ACTIVATIONS[activation],
            windows=_windows(config, family, layers),
        )


def architecture_of(config: dict[str, Any]) -> str:
    """The class that a config.json names first."""
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise InvalidFormat("config.json names no architecture (`architectures` is missing or empty)")
    return names[0]


def unknown_architecture(name: str) -> Unsupported:
    """The error that names what this engine runs."""
    known = ", ".join((*DECODER_FAMILIES, *ENCODER_FAMILIES))
    return Unsupported(f"the architecture {name}", f"this engine runs {known}")


def size_of(config: dict[str, Any], key: str, default: int | None = None) -> int:
    """A positive whole number of config.json, or `default` where the key is missing or null."""
    value = config.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidFormat(f"config.json: {key} must be a positive whole number, not {value!r}")
    return value


def _windows(config: dict[str, Any], family: Family, layers: int) -> tuple[int | None, ...]:
    window = config.get("sliding_window")
    if (
        family.sliding == "never"
        or window is None
        or (family.sliding == "flagged" and not config.get("use_sliding_window"))
    ):
        return (None,) * layers
    window = size_of(config, "sliding_window")
    if family.sliding == "always":
        return (window,) * layers
    kinds = config.get("layer_types")
    if kinds is None:
        first = config.get("max_window_layers", 28)
        kinds = ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]
    if len(kinds) != layers:
        raise InvalidFormat(f"config.json: layer_types has {len(kinds)} entries for {layers} layers")
    unknown = sorted(set(kinds) - {"sliding_attention", "full_attention"})
    if unknown:
        raise Unsupported(
            f"layer type {unknown[0]!r}", "this engine knows full_attention and sliding_attention"
        )
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
