"""config.json out of GGUF metadata."""

from __future__ import annotations

import math
from typing import Any

import pytest

from inferloom.errors import InferloomError, InvalidFormat, LoadFailed
from inferloom.formats.gguf_config import config_of, generation_config_of

LLAMA: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.context_length": 8192,
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 96,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 9.999999747378752e-06,
    "llama.rope.freq_base": 500000.0,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
}


def configured(rope_factors: list[float] | None = None, **changes: Any) -> dict[str, Any]:
    metadata = {**LLAMA, **{key.replace("__", "."): value for key, value in changes.items()}}
    kept = {key: value for key, value in metadata.items() if value is not None}
    return config_of(kept, tied=True, biased=False, vocab_size=100, rope_factors=rope_factors)


def llama3_factors(*, theta: float, head_dim: int, factor: float, original: int) -> list[float]:
    """Meta's rule, written down a second time and another way."""
    factors = []
    for pair in range(head_dim // 2):
        turns = original / (2 * math.pi * theta ** (2 * pair / head_dim))  # in the original context
        share = min(1.0, max(0.0, (turns - 1) / (4 - 1)))
        factors.append(1 / (share + (1 - share) / factor))
    return factors


def test_a_plain_llama_has_the_fields_of_its_family() -> None:
    config = configured()
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["head_dim"] == 16
    assert config["num_key_value_heads"] == 2
    assert config["rms_norm_eps"] == 1e-5
    assert config["rope_theta"] == 500000.0
    assert config["rope_scaling"] is None
    assert config["tie_word_embeddings"] is True
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)


def test_llama_3s_rule_is_found_again_from_its_factors() -> None:
    factors = llama3_factors(theta=500000.0, head_dim=128, factor=32.0, original=8192)
    scaling = configured(factors, llama__embedding_length=512)["rope_scaling"]
    assert scaling == {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def test_factors_of_no_known_rule_are_kept_as_they_are() -> None:
    factors = [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5]
    scaling = configured(factors)["rope_scaling"]
    assert scaling["rope_type"] == "longrope"
    assert scaling["long_factor"] == scaling["short_factor"] == factors
    assert scaling["attention_factor"] == 1.0
    assert configured([1.0] * 8)["rope_scaling"] is None


def test_yarn_and_linear_scaling_keep_their_numbers() -> None:
    yarn = configured(
        llama__rope__scaling__type="yarn",
        llama__rope__scaling__factor=4.0,
        llama__rope__scaling__original_context_length=2048,
    )
    assert yarn["rope_scaling"] == {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 2048,
    }
    linear = configured(llama__rope__scaling__type="linear", llama__rope__scaling__factor=2.0)
    assert linear["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}


def test_a_sliding_window_makes_it_a_mistral() -> None:
    config = configured(llama__attention__sliding_window=4096)
    assert config["architectures"] == ["MistralForCausalLM"]
    assert config["sliding_window"] == 4096


def test_the_same_number_for_every_layer_is_one_number() -> None:
    assert configured(llama__attention__head_count_kv=[2, 2])["num_key_value_heads"] == 2


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        (
            {"general__architecture": "gemma3"},
            LoadFailed,
            r"architecture 'gemma3' .* it runs llama, qwen2, qwen3",
        ),
        ({"general__architecture": None}, InvalidFormat, "does not name its architecture"),
        ({"llama__expert_count": 8}, LoadFailed, "mixture of experts"),
        ({"llama__block_count": None}, InvalidFormat, r"lacks llama\.block_count"),
        ({"llama__block_count": -1}, InvalidFormat, "not a sensible number"),
        ({"llama__block_count": "two"}, InvalidFormat, "not a sensible number"),
        ({"llama__attention__head_count_kv": [2, 1]}, LoadFailed, "differs between layers"),
        ({"llama__attention__layer_norm_rms_epsilon": None}, InvalidFormat, "lacks"),
        ({"llama__rope__dimension_count": 8}, LoadFailed, "rotating 8 of 16"),
        (
            {"llama__attention__key_length": 16, "llama__attention__value_length": 8},
            LoadFailed,
            "values of 8",
        ),
        (
            {"llama__rope__scaling__type": "odd", "llama__rope__scaling__factor": 2.0},
            LoadFailed,
            "type 'odd'",
        ),
        ({"llama__rope__scaling__attn_factor": 0.5}, LoadFailed, "attention factor of 0.5"),
        ({"rope_factors": [1.0]}, InvalidFormat, "rope_freqs"),
        ({"rope_factors": [0.0] * 8}, InvalidFormat, "rope_freqs"),
    ],
)
def test_what_is_missing_or_not_run_is_named(
    changes: dict[str, Any], error: type[InferloomError], says: str
) -> None:
    with pytest.raises(error, match=says):
        configured(**changes)


def test_generation_ends_at_eos_and_at_the_tokens_known_to_end_a_turn() -> None:
    metadata = {
        **LLAMA,
        "tokenizer.ggml.tokens": ["<|endoftext|>", "a", "<|im_end|>", "<|end|>"],
        "tokenizer.ggml.token_type": [3, 1, 3, 1],
    }
    assert generation_config_of(metadata)["eos_token_id"] == [2, 0]


def test_the_sampling_that_a_file_recommends_is_kept() -> None:
    advice = {
        "general.sampling.temp": 0.6000000238418579,
        "general.sampling.top_k": 20,
        "general.sampling.min_p": 0.0,
    }
    made = generation_config_of({**LLAMA, **advice})
    assert (made["temperature"], made["top_k"], made["min_p"]) == (0.6, 20, 0.0)
    assert "top_p" not in made
