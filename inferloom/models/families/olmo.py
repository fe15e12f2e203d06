"""OLMo 2: norms on what the halves of a layer put out, none on what they take in, and one over all heads of q and of k."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from inferloom.models.families.base import base_spec
from inferloom.models.families.names import Names
from inferloom.models.spec import DecoderSpec

NAMES = Names(
    input_norm="",
    mlp_norm="",
    attention_out_norm="post_attention_layernorm",
    mlp_out_norm="post_feedforward_layernorm",
)


def olmo2(config: dict[str, Any]) -> DecoderSpec:
    bias = bool(config.get("attention_bias", False))
    return replace(
        base_spec(config, norm_eps=1e-5),
        qkv_bias=bias,
        o_bias=bias,
        qk_norm="row",
        input_norms=False,
        output_norms=True,
    )
