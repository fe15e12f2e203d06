"""Phi-3, Phi-3.5 and Phi-4: q, k and v in one matrix, gate and up in another; LongRoPE; part of a head turns in Phi-4 mini."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from inferloom.models.families.base import base_spec, windows_of
from inferloom.models.families.names import Names
from inferloom.models.spec import DecoderSpec

NAMES = Names(qkv="self_attn.qkv_proj", gate_up="mlp.gate_up_proj")


def phi3(config: dict[str, Any]) -> DecoderSpec:
    spec = base_spec(
        {"original_max_position_embeddings": 4096, **_renamed(config)},
        max_positions=4096,
        partial_rotary=1.0,
        norm_eps=1e-5,
    )
    everywhere = {**config, "layer_types": None}
    return replace(spec, windows=windows_of(everywhere, spec.layers, ["sliding_attention"] * spec.layers))


def _renamed(config: dict[str, Any]) -> dict[str, Any]:
    """LongRoPE was called "su", and "yarn", in the first files of the family."""
    changed = dict(config)
    for key in ("rope_parameters", "rope_scaling"):
        given = config.get(key)
        if isinstance(given, dict) and (given.get("rope_type") or given.get("type")) in ("su", "yarn"):
            changed[key] = {**given, "rope_type": "longrope"}
    return changed
