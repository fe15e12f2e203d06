"""What an engine refuses at the door: requests that could never finish, each with a sentence."""

from __future__ import annotations

import math

from inferloom.engine.messages import Generate, Rejected, SamplingSpec


def refusal(spec: Generate, *, max_model_len: int, vocab_size: int, has_grammars: bool) -> Rejected | None:
    """None if the request can run alone on this engine; otherwise the answer to it."""
    needed = len(spec.prompt) + spec.max_tokens
    if not spec.prompt:
        return _invalid(spec, "the prompt is empty; send at least one token")
    if needed > max_model_len:
        return Rejected(
            spec.id,
            "context_length_exceeded",
            f"the prompt has {len(spec.prompt)} tokens and {spec.max_tokens} more may be generated, together {needed}, "
            f"but this model holds at most {max_model_len}; shorten the prompt or lower max_tokens",
        )
    if spec.n < 1 or spec.max_tokens < 0:
        return _invalid(
            spec, f"n must be at least 1 and max_tokens at least 0, not {spec.n} and {spec.max_tokens}"
        )
    if max(spec.prompt) >= vocab_size or min(spec.prompt) < 0:
        worst = max(spec.prompt) if max(spec.prompt) >= vocab_size else min(spec.prompt)
        return _invalid(
            spec, f"token id {worst} in the prompt is outside the vocabulary of {vocab_size} tokens"
        )
    for token in spec.sampling.logit_bias or ():
        if not 0 <= token < vocab_size:
            return _invalid(
                spec, f"token id {token} in logit_bias is outside the vocabulary of {vocab_size} tokens"
            )
    if (unusable := _unusable(spec.sampling)) is not None:
        return _invalid(spec, unusable)
    if spec.grammar is not None and not has_grammars:
        return Rejected(
            spec.id,
            "unsupported",
            "structured output is not supported: this model has no tokenizer.json, which grammars need",
        )
    return None


def _unusable(sampling: SamplingSpec) -> str | None:
    """Values that would make no distribution of a row of logits, and so harm everyone in its batch."""
    bounds: dict[str, tuple[float, float]] = {
        "temperature": (0.0, 1e6),
        "top_p": (0.0, 1.0),
        "min_p": (0.0, 1.0),
        "presence_penalty": (-1e6, 1e6),
        "frequency_penalty": (-1e6, 1e6),
        "repetition_penalty": (1e-6, 1e6),
    }
    for name, (low, high) in bounds.items():
        value: float = getattr(sampling, name)
        if not low <= value <= high:  # NaN is in no interval
            return f"{name} must be between {low:g} and {high:g}, not {value:g}"
    if sampling.top_k < 0:
        return f"top_k must be at least 0, not {sampling.top_k}"
    if not all(math.isfinite(bias) for bias in (sampling.logit_bias or {}).values()):
        return "logit_bias must be finite numbers"
    return None


def _invalid(spec: Generate, message: str) -> Rejected:
    return Rejected(spec.id, "invalid_request", message)
