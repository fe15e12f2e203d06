"""config.json and generation_config.json, in Hugging Face's layout, from a GGUF file's metadata."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from inferloom.errors import InvalidFormat, LoadFailed
from inferloom.formats.gguf_file import Value, number, real, text, texts

# general.architecture → (architectures[0], model_type)
_FAMILIES = {
    "llama": ("LlamaForCausalLM", "llama"),
    "qwen2": ("Qwen2ForCausalLM", "qwen2"),
    "qwen3": ("Qwen3ForCausalLM", "qwen3"),
}
# Tokens that end an answer whatever the file's eos is; llama.cpp looks for the same.
ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|endoftext|>",
    "<|end|>",
    "<end_of_turn>",
    "<|end_of_text|>",
)
# general.sampling.* → generation_config.json
_SAMPLING = {
    "temp": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}
_CONTROL = 3  # tokenizer.ggml.token_type


def family_of(metadata: Mapping[str, Value]) -> str:
    """`general.architecture`, if it is one that can be run. Raises `LoadFailed` naming it otherwise."""
    architecture = text(metadata, "general.architecture")
    if architecture is None:
        raise InvalidFormat("the GGUF file does not name its architecture (general.architecture).")
    if architecture not in _FAMILIES:
        raise LoadFailed(
            f"GGUF files of the architecture {architecture!r} are not run by this version; "
            f"it runs {', '.join(sorted(_FAMILIES))}."
        )
    if (number(metadata, f"{architecture}.expert_count") or 0) > 0:
        raise LoadFailed("GGUF files with a mixture of experts are not run by this version.")
    return architecture


def config_of(
    metadata: Mapping[str, Value],
    *,
    tied: bool,
    biased: bool,
    vocab_size: int,
    rope_factors: Sequence[float] | None,
) -> dict[str, Any]:
    """config.json. `tied`: there is no output.weight; `biased`: Q, K and V have biases; `rope_factors`:
    rope_freqs.weight, one for each pair.

    Raises `InvalidFormat` for missing keys and `LoadFailed` for what no executor here computes.
    """
    family = family_of(metadata)
    name, model_type = _FAMILIES[family]
    heads = _whole(metadata, f"{family}.attention.head_count")
    hidden = _whole(metadata, f"{family}.embedding_length")
    head_dim = number(metadata, f"{family}.attention.key_length") or hidden // heads
    value_dim = number(metadata, f"{family}.attention.value_length") or head_dim
    if value_dim != head_dim:
        raise LoadFailed(
            f"attention with keys of {head_dim} and values of {value_dim} is not run by this version."
        )
    rotated = number(metadata, f"{family}.rope.dimension_count") or head_dim
    if rotated != head_dim:
        raise LoadFailed(f"rotating {rotated} of {head_dim} dimensions is not run by this version.")
    epsilon = real(metadata, f"{family}.attention.layer_norm_rms_epsilon")
    if epsilon is None:
        raise InvalidFormat(f"the GGUF file lacks {family}.attention.layer_norm_rms_epsilon.")
    theta = real(metadata, f"{family}.rope.freq_base") or 10000.0
    context = _whole(metadata, f"{family}.context_length")
    config: dict[str, Any] = {
        "architectures": [name],
        "model_type": model_type,
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "intermediate_size": _whole(metadata, f"{family}.feed_forward_length"),
        "num_hidden_layers": _whole(metadata, f"{family}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _whole(metadata, f"{family}.attention.head_count_kv", default=heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": context,
        "rms_norm_eps": _shortest(epsilon),
        "rope_theta": _shortest(theta),
        "rope_scaling": _scaling(metadata, family, theta, head_dim, context, rope_factors),
        "attention_bias": biased,
        "tie_word_embeddings": tied,
        "dtype": "bfloat16",
        "bos_token_id": number(metadata, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": number(metadata, "tokenizer.ggml.eos_token_id"),
        "pad_token_id": number(metadata, "tokenizer.ggml.padding_token_id"),
        "use_cache": True,
    }
    window = number(metadata, f"{family}.attention.sliding_window")
    if window:
        if family != "llama":
            raise LoadFailed(f"{family} with a sliding window is not run by this version from GGUF files.")
        config |= {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": window}
    return config


def generation_config_of(metadata: Mapping[str, Value]) -> dict[str, Any]:
    """generation_config.json: the ids that begin and end texts, and the sampling that the file recommends."""
    tokens = texts(metadata, "tokenizer.ggml.tokens") or []
    kinds = metadata.get("tokenizer.ggml.token_type")
    control = set()
    if isinstance(kinds, list):
        control = {token for token, kind in zip(tokens, kinds, strict=False) if kind == _CONTROL}
    named = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
    ends = [end for key in named if (end := number(metadata, key)) is not None]
    ends += [tokens.index(end) for end in ENDS if end in control]
    made: dict[str, Any] = {"eos_token_id": list(dict.fromkeys(ends))}
    for key, name in (("bos_token_id", "bos_token_id"), ("padding_token_id", "pad_token_id")):
        value = number(metadata, f"tokenizer.ggml.{key}")
        if value is not None:
            made[name] = value
    for key, name in _SAMPLING.items():
        advice = real(metadata, f"general.sampling.{key}")
        if advice is not None:
            made[name] = int(advice) if name == "top_k" else _shortest(advice)
    return made


def _whole(metadata: Mapping[str, Value], key: str, *, default: int | None = None) -> int:
    value = metadata.get(key, default)
    if isinstance(value, list):  # per layer
        if not value or any(item != value[0] for item in value):
            raise LoadFailed(f"{key} differs between layers, which this version does not run.")
        value = value[0]
    if value is None:
        raise InvalidFormat(f"the GGUF file lacks {key}.")
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 31:
        raise InvalidFormat(f"{key} is {value!r:.40}, not a sensible number.")
    return value


def _shortest(value: float) -> float:
    """The decimal that was meant: metadata are float32, 1e-5 reads as 9.999999747378752e-06."""
    return float(f"{value:.7g}")


def _scaling(
    metadata: Mapping[str, Value],
    family: str,
    theta: float,
    head_dim: int,
    context: int,
    factors: Sequence[float] | None,
) -> dict[str, Any] | None:
    original = number(metadata, f"{family}.rope.scaling.original_context_length")
    if factors is not None:
        return _from_factors(factors, theta=theta, head_dim=head_dim, original=original)
    kind = text(metadata, f"{family}.rope.scaling.type") or "none"
    factor = (
        real(metadata, f"{family}.rope.scaling.factor")
        or real(metadata, f"{family}.rope.scale_linear")
        or 1.0
    )
    strength = real(metadata, f"{family}.rope.scaling.attn_factor")
    if strength not in (None, 1.0):
        raise LoadFailed(
            f"position scaling with an attention factor of {strength} is not run by this version."
        )
    if kind == "none" or factor == 1.0:
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        scaling = {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original or context,
        }
        for key, name in (("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")):
            value = real(metadata, f"{family}.rope.scaling.{key}")
            if value is not None:
                scaling[name] = value
        return scaling
    raise LoadFailed(f"position scaling of the type {kind!r} is not run by this version from GGUF files.")


def _from_factors(
    factors: Sequence[float], *, theta: float, head_dim: int, original: int | None
) -> dict[str, Any] | None:
    """The configuration behind rope_freqs.weight: Llama 3's rule, found again and verified; else the factors as such."""
    if len(factors) != head_dim // 2 or not all(math.isfinite(factor) and factor > 0 for factor in factors):
        raise InvalidFormat(
            f"rope_freqs.weight holds {len(factors)} values, and not one positive one for each pair."
        )
    largest = _shortest(max(factors))
    if all(factor == 1.0 for factor in factors):
        return None
    for length in [original] if original else [8192, 4096, 16384, 32768]:
        rule = [
            _llama3(theta ** (-2 * i / head_dim), factor=largest, original=length)
            for i in range(len(factors))
        ]
        if all(math.isclose(mine, theirs, rel_tol=1e-4) for mine, theirs in zip(rule, factors, strict=True)):
            return {
                "rope_type": "llama3",
                "factor": largest,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": length,
            }
    each = [float(factor) for factor in factors]
    return {
        "rope_type": "longrope",
        "factor": 1.0,
        "attention_factor": 1.0,
        "short_factor": each,
        "long_factor": each,
        "original_max_position_embeddings": original or 8192,
    }


def _llama3(frequency: float, *, factor: float, original: int) -> float:
    """By what Llama 3.1 divides `frequency`; low and high frequency factors are 1 and 4 in all its releases."""
    wavelength = 2 * math.pi / frequency
    if wavelength < original / 4:
        return 1.0
    if wavelength > original:
        return factor
    smooth = (original / wavelength - 1) / 3
    return 1 / ((1 - smooth) / factor + smooth)
