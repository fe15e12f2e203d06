"""Qwen2 (biases on q, k and v), Qwen3 (a norm on each head of q and k), and their mixtures of experts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from inferloom.errors import InvalidFormat
from inferloom.models.config_json import size_of
from inferloom.models.families.base import base_spec, windows_of
from inferloom.models.families.names import Names
from inferloom.models.spec import DecoderSpec, MixtureSpec

MOE_NAMES = Names(
    router="mlp.gate",
    expert="mlp.experts.{}",
    shared_expert="mlp.shared_expert",
    shared_gate="mlp.shared_expert_gate",
)


def qwen2(config: dict[str, Any]) -> DecoderSpec:
    spec = base_spec(config, max_positions=32_768, kv_heads=32)
    return replace(spec, qkv_bias=True, windows=_windows(config, spec.layers))


def qwen3(config: dict[str, Any]) -> DecoderSpec:
    spec = base_spec(config, max_positions=32_768, kv_heads=32, head_dim=128)
    bias = bool(config.get("attention_bias", False))
    return replace(spec, qkv_bias=bias, o_bias=bias, qk_norm="head", windows=_windows(config, spec.layers))


def qwen2_moe(config: dict[str, Any]) -> DecoderSpec:
    spec = base_spec(config, max_positions=32_768, kv_heads=16)
    first = config.get("max_window_layers", 28)
    # As `transformers` reads it: every other one of the first layers.
    kinds = ["full_attention" if i % 2 or i >= first else "sliding_attention" for i in range(spec.layers)]
    flagged = bool(config.get("use_sliding_window"))
    return replace(
        spec,
        qkv_bias=bool(config.get("qkv_bias", True)),
        windows=windows_of(config, spec.layers, kinds, default=4096) if flagged else spec.windows,
        mixture=_mixture(
            config,
            spec.layers,
            experts=60,
            per_token=4,
            size=1408,
            shared_size=size_of(config, "shared_expert_intermediate_size", 5632),
        ),
    )


def qwen3_moe(config: dict[str, Any]) -> DecoderSpec:
    spec = base_spec(config, max_positions=32_768, kv_heads=4)
    bias = bool(config.get("attention_bias", False))
    everywhere = {**config, "layer_types": None}
    kinds = ["sliding_attention"] * spec.layers
    flagged = bool(config.get("use_sliding_window"))
    return replace(
        spec,
        qkv_bias=bias,
        o_bias=bias,
        qk_norm="head",
        windows=windows_of(everywhere, spec.layers, kinds, default=4096) if flagged else spec.windows,
        mixture=_mixture(config, spec.layers, experts=128, per_token=8, size=768, shared_size=None),
    )


def _windows(config: dict[str, Any], layers: int) -> tuple[int | None, ...]:
    """Only where `use_sliding_window` is set, and from layer `max_window_layers` on where `layer_types` says nothing."""
    if not config.get("use_sliding_window"):
        return (None,) * layers
    first = config.get("max_window_layers", 28)
    return windows_of(
        config, layers, ["sliding_attention" if i >= first else "full_attention" for i in range(layers)]
    )


def _mixture(
    config: dict[str, Any],
    layers: int,
    *,
    experts: int,
    per_token: int,
    size: int,
    shared_size: int | None,
) -> MixtureSpec | None:
    """Every `decoder_sparse_step`-th layer has experts, but for `mlp_only_layers`; None where that leaves none."""
    # Older files say num_experts, those of transformers 5 num_local_experts as well.
    count = config.get("num_experts", config.get("num_local_experts", experts))
    if count == 0:
        return None
    count = size_of({"num_experts": count}, "num_experts")
    chosen = size_of(config, "num_experts_per_tok", per_token)
    if chosen > count:
        raise InvalidFormat(f"config.json: num_experts_per_tok is {chosen}, of {count} experts")
    step, dense = size_of(config, "decoder_sparse_step", 1), config.get("mlp_only_layers") or []
    sparse = tuple(i not in dense and (i + 1) % step == 0 for i in range(layers))
    if not any(sparse):
        return None
    return MixtureSpec(
        experts=count,
        per_token=chosen,
        size=size_of(config, "moe_intermediate_size", size),
        normalised=bool(config.get("norm_topk_prob", False)),
        shared_size=shared_size,
        layers=sparse,
    )
