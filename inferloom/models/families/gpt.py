"""GPT-2 and GPT-NeoX: LayerNorm with bias, biases everywhere, an MLP without a gate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from inferloom.errors import Unsupported
from inferloom.models.config_json import number_of, size_of
from inferloom.models.families.base import activation_of, base_spec
from inferloom.models.families.names import Names
from inferloom.models.spec import DecoderSpec

GPT2_NAMES = Names(
    prefixes=("transformer.", ""),  # the files of the first release have none
    embedding="wte",
    positions="wpe",
    layer="h.{}",
    norm="ln_f",
    input_norm="ln_1",
    mlp_norm="ln_2",
    qkv="attn.c_attn",
    o="attn.c_proj",
    up="mlp.c_fc",
    down="mlp.c_proj",
    transposed=True,
    ignored=(r".*\.attn\.(masked_)?bias",),
)
NEOX_NAMES = Names(
    embedding="gpt_neox.embed_in",
    layer="gpt_neox.layers.{}",
    norm="gpt_neox.final_layer_norm",
    heads=("embed_out", "lm_head"),
    qkv="attention.query_key_value",
    qkv_order="heads",
    o="attention.dense",
    up="mlp.dense_h_to_4h",
    down="mlp.dense_4h_to_h",
    ignored=(r".*\.attention\.((masked_)?bias|rotary_emb\.inv_freq)",),
)


def gpt2(config: dict[str, Any]) -> DecoderSpec:
    """Positions are learned and added to the embedding; nothing turns."""
    for key, wanted in (("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False)):
        if bool(config.get(key, wanted)) is not wanted:
            raise Unsupported(f"{key} = {config[key]}", "scores are divided by the root of the head size")
    hidden = size_of(config, "n_embd", 768)
    plain = {
        "architectures": config["architectures"],
        "vocab_size": config.get("vocab_size", 50_257),
        "hidden_size": hidden,
        "intermediate_size": config.get("n_inner") or 4 * hidden,
        "num_hidden_layers": size_of(config, "n_layer", 12),
        "num_attention_heads": size_of(config, "n_head", 12),
        "max_position_embeddings": size_of(config, "n_positions", 1024),
        "tie_word_embeddings": config.get("tie_word_embeddings"),
    }
    spec = base_spec({key: value for key, value in plain.items() if value is not None}, tied=True)
    return replace(
        spec,
        norm_eps=number_of(config, "layer_norm_epsilon", 1e-5),
        activation=activation_of(config, "activation_function", "gelu_new"),
        learned_positions=True,
        ropes=(None,) * spec.layers,
        **_gpt(),
    )


def gpt_neox(config: dict[str, Any]) -> DecoderSpec:
    """Both halves of a layer read the same residual stream, unless `use_parallel_residual` is off."""
    known = {
        **config,
        "num_key_value_heads": None,
        "rope_theta": config.get("rotary_emb_base") or config.get("rope_theta"),
        "partial_rotary_factor": config.get("rotary_pct") or config.get("partial_rotary_factor"),
    }
    bias = bool(config.get("attention_bias", True))
    return replace(
        base_spec(known, partial_rotary=0.25),
        norm_eps=number_of(config, "layer_norm_eps", 1e-5),
        activation=activation_of(config, "hidden_act", "gelu"),
        parallel_residual=bool(config.get("use_parallel_residual", True)),
        **_gpt() | {"qkv_bias": bias, "o_bias": bias},
    )


def _gpt() -> dict[str, Any]:
    return {
        "norm_kind": "layer",
        "gated": False,
        "qkv_bias": True,
        "o_bias": True,
        "mlp_bias": True,
    }
