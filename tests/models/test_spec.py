"""What a config.json makes of a decoder, in the forms that checkpoints have it."""

from __future__ import annotations

from typing import Any

import pytest

from inferloom.errors import InvalidFormat, Unsupported
from inferloom.models.spec import DecoderSpec

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}


def spec_of(**changes: Any) -> DecoderSpec:
    return DecoderSpec.from_config(LLAMA | changes)


def test_missing_keys_take_the_family_s_defaults() -> None:
    spec = spec_of()
    assert (spec.kv_heads, spec.head_dim, spec.max_positions) == (4, 16, 2048)
    assert [rope.theta for rope in spec.ropes if rope] == [10_000.0] * 3
    assert not spec.tied_embeddings and not spec.qkv_bias and not spec.mlp_bias and not spec.qk_norm
    assert spec.windows == (None, None, None)


def test_the_old_and_the_new_form_of_rope_parameters_say_the_same() -> None:
    scaling = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    old = spec_of(rope_theta=500_000.0, rope_scaling={"type": "llama3", **scaling})
    new = spec_of(rope_parameters={"rope_theta": 500_000.0, "rope_type": "llama3", **scaling})
    assert old == new
    rope = new.ropes[0]
    assert rope is not None and rope.theta == 500_000.0 and rope.kind == "llama3"


def test_qwen2_has_biases_on_q_k_and_v_alone() -> None:
    spec = spec_of(architectures=["Qwen2ForCausalLM"], num_key_value_heads=2)
    assert spec.qkv_bias and not spec.o_bias


def test_qwen3_normalises_heads_of_their_own_size() -> None:
    spec = spec_of(architectures=["Qwen3ForCausalLM"], num_key_value_heads=2)
    assert spec.qk_norm == "head" and spec.head_dim == 128


def test_a_sliding_window_counts_where_the_family_uses_it() -> None:
    mistral = {"architectures": ["MistralForCausalLM"], "num_key_value_heads": 2, "sliding_window": 8}
    qwen = {"architectures": ["Qwen2ForCausalLM"], "num_key_value_heads": 2, "sliding_window": 8}
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    assert spec_of(**mistral).windows == (8, 8, 8)
    assert spec_of(**qwen).windows == (None, None, None)
    assert spec_of(**qwen, use_sliding_window=True, max_window_layers=2).windows == (None, None, 8)
    assert spec_of(**qwen, use_sliding_window=True, layer_types=kinds).windows == (None, 8, None)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        (
            {"architectures": ["FalconForCausalLM"]},
            Unsupported,
            "FalconForCausalLM.*LlamaForCausalLM.*BertModel",
        ),
        ({"architectures": []}, InvalidFormat, "invalid format: .*names no architecture"),
        ({"hidden_size": None}, InvalidFormat, "hidden_size must be a positive whole number, not None"),
        ({"vocab_size": "many"}, InvalidFormat, "vocab_size.*'many'"),
        ({"num_key_value_heads": 3}, InvalidFormat, "4 attention heads cannot share 3"),
        ({"head_dim": 15}, InvalidFormat, "head_dim must be even"),
        ({"hidden_act": "relu2"}, Unsupported, "hidden_act 'relu2'.*silu"),
        ({"rope_scaling": {"rope_type": "proportional"}}, Unsupported, "rope scaling 'proportional'.*yarn"),
        (
            {"rope_scaling": {"rope_type": "longrope"}},
            InvalidFormat,
            "'longrope' needs 8 numbers as short_factor",
        ),
        (
            {"rope_scaling": {"rope_type": "linear"}},
            InvalidFormat,
            "'linear' needs a positive factor, got None",
        ),
        ({"partial_rotary_factor": 0.5}, Unsupported, "partial_rotary_factor"),
        ({"rope_parameters": {"full_attention": {}}}, Unsupported, "rope per kind of layer.*full_attention"),
        ({"quantization_config": {"quant_method": "awq"}}, Unsupported, "quantised with awq"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(
    changes: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        spec_of(**changes)
