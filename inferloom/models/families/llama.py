"""Llama and Mistral: the shape that most families vary."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from inferloom.models.families.base import base_spec, windows_of
from inferloom.models.families.names import Names
from inferloom.models.spec import DecoderSpec

NAMES = Names()


def llama(config: dict[str, Any]) -> DecoderSpec:
    bias = bool(config.get("attention_bias", False))
    return replace(
        base_spec(config), qkv_bias=bias, o_bias=bias, mlp_bias=bool(config.get("mlp_bias", False))
    )


def mistral(config: dict[str, Any]) -> DecoderSpec:
    """Every layer has the window, where there is one."""
    spec = base_spec(config, max_positions=131_072, kv_heads=8)
    everywhere = {**config, "layer_types": None}
    return replace(spec, windows=windows_of(everywhere, spec.layers, ["sliding_attention"] * spec.layers))
