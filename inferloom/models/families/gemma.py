"""Gemma 2 and the text models of Gemma 3: norms around both halves of a layer, windows in most layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from inferloom.errors import Unsupported
from inferloom.models.config_json import cap_of, number_of
from inferloom.models.families.base import activation_of, base_spec, kinds_of, windows_of
from inferloom.models.families.names import Names
from inferloom.models.rope import RopeSpec
from inferloom.models.spec import DecoderSpec

NAMES = Names(
    attention_out_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    mlp_out_norm="post_feedforward_layernorm",
)


def gemma2(config: dict[str, Any]) -> DecoderSpec:
    spec = _gemma(config, base_spec(config, max_positions=8192, kv_heads=4, head_dim=256, tied=True))
    kinds = ["full_attention" if i % 2 else "sliding_attention" for i in range(spec.layers)]
    return replace(
        spec,
        windows=windows_of(config, spec.layers, kinds, default=4096),
        attention_soft_cap=cap_of(config, "attn_logit_softcapping", 50.0),
        logit_soft_cap=cap_of(config, "final_logit_softcapping", 30.0),
    )


def gemma3(config: dict[str, Any]) -> DecoderSpec:
    """Layers with a window turn by a frequency of their own (`rope_local_base_freq`), without scaling."""
    # The two ropes are read below: what base_spec makes of them does not count.
    plain = {**config, "rope_parameters": None, "rope_scaling": None}
    spec = _gemma(config, base_spec(plain, max_positions=131_072, kv_heads=4, head_dim=256, tied=True))
    pattern = config.get("sliding_window_pattern") or 6
    kinds = kinds_of(
        config,
        spec.layers,
        ["sliding_attention" if (i + 1) % pattern else "full_attention" for i in range(spec.layers)],
    )
    ropes = _ropes(config, spec)
    return replace(
        spec,
        qk_norm="head",
        ropes=tuple(ropes[kind] for kind in kinds),
        windows=windows_of(config, spec.layers, kinds, default=4096),
        # The attention of Gemma 3 has no soft cap, whatever its file says: `transformers` does not pass it on.
        logit_soft_cap=cap_of(config, "final_logit_softcapping", None),
    )


def _gemma(config: dict[str, Any], spec: DecoderSpec) -> DecoderSpec:
    if config.get("use_bidirectional_attention"):
        raise Unsupported("use_bidirectional_attention", "a decoder sees what came before only")
    bias = bool(config.get("attention_bias", False))
    return replace(
        spec,
        activation=activation_of(config, "hidden_activation", "gelu_pytorch_tanh"),
        attention_scale=number_of(config, "query_pre_attn_scalar", 256.0) ** -0.5,
        embedding_factor=spec.hidden_size**0.5,
        norm_offset=1.0,
        output_norms=True,
        qkv_bias=bias,
        o_bias=bias,
    )


def _ropes(config: dict[str, Any], spec: DecoderSpec) -> dict[str, RopeSpec]:
    """Of each kind of layer, from the nested form of transformers 5 or the flat one before it."""
    given = config.get("rope_parameters") or {}
    full = given.get("full_attention") or config.get("rope_scaling") or {}
    local = given.get("sliding_attention") or {"rope_theta": config.get("rope_local_base_freq", 10_000.0)}
    flat = {key: value for key, value in config.items() if key != "rope_theta"}
    return {
        kind: RopeSpec.from_config(
            known, head_dim=spec.head_dim, max_positions=spec.max_positions, theta=theta, given=parameters
        )
        for kind, known, parameters, theta in (
            ("full_attention", config, full, 1_000_000.0),
            ("sliding_attention", flat, local, 10_000.0),
        )
    }
