"""SmolLM3: a Llama that leaves positions out in every fourth layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from inferloom.errors import InvalidFormat
from inferloom.models.config_json import size_of
from inferloom.models.families.base import base_spec, windows_of
from inferloom.models.spec import DecoderSpec


def smollm3(config: dict[str, Any]) -> DecoderSpec:
    spec = base_spec(config, theta=2_000_000.0, max_positions=32_768, kv_heads=4, tied=True)
    turned = config.get("no_rope_layers")  # 1 where positions turn, despite its name
    if turned is None:
        interval = size_of(config, "no_rope_layer_interval", 4)
        turned = [(i + 1) % interval for i in range(spec.layers)]
    if not isinstance(turned, list) or len(turned) != spec.layers:
        raise InvalidFormat(f"config.json: no_rope_layers must have {spec.layers} entries, not {turned!r}")
    # Where windows are used at all, the layers without positions have them.
    kinds = ["full_attention" if turns else "sliding_attention" for turns in turned]
    bias = bool(config.get("attention_bias", False))
    return replace(
        spec,
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=bool(config.get("mlp_bias", False)),
        ropes=tuple(rope if turns else None for rope, turns in zip(spec.ropes, turned, strict=True)),
        windows=windows_of(config, spec.layers, kinds) if config.get("use_sliding_window") else spec.windows,
    )
