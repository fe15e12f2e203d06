"""What an engine is asked and what it answers: plain structs, part of the worker's protocol, free of torch."""

from __future__ import annotations

from typing import Literal

import msgspec

from inferloom.types import FinishReason

# one token's logprobs: (logprob of the chosen token or None, [(token id, logprob), …] best first)
Logprob = tuple[float | None, list[tuple[int, float]]]


class SamplingSpec(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Sampling with every default resolved. temperature 0 is greedy; top_k 0, top_p 1, min_p 0 mean off."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] | None = None
    seed: int = 0  # 64 bits; random numbers depend on (seed, choice, position) alone


class GrammarSpec(msgspec.Struct, frozen=True, array_like=True):
    """A grammar as llguidance takes it: `json_schema` (JSON text), `regex` or `lark`."""

    kind: Literal["json_schema", "regex", "lark"]
    value: str


class Generate(msgspec.Struct, tag="g", array_like=True):
    """Start one request: `n` choices over one prompt (never empty)."""

    id: int
    prompt: list[int]
    max_tokens: int  # ≥ 0; with 0 only the prompt's logprobs are computed
    sampling: SamplingSpec
    n: int = 1
    stop_token_ids: list[int] = []  # a token of these ends a choice and is not part of its text
    grammar: GrammarSpec | None = None
    logprobs: int = -1  # -1: none; 0: the chosen token's; k: also the k best
    prompt_logprobs: bool = False
    priority: int = 0


class SequenceStep(msgspec.Struct, array_like=True, gc=False):
    """What one choice gained in a step. A stop token is not among `tokens`.

    `prompt_logprobs` (one per prompt token, the first without a value) and `cached_tokens` come with a choice's
    first step.
    """

    id: int
    choice: int
    tokens: list[int]
    finish: FinishReason | None = None
    logprobs: list[Logprob] | None = None
    prompt_logprobs: list[Logprob] | None = None
    cached_tokens: int = 0


class Rejected(msgspec.Struct, tag="j", array_like=True):
    """A request that cannot be run (`kind`: a code of `errors.py`); nothing else follows for its id."""

    id: int
    kind: str
    message: str


class Stats(msgspec.Struct, tag="a", array_like=True):
    """Answer to `GetStats` and `Flush`; also sent unasked (id 0) about once a second while there is work."""

    id: int
    running: int = 0
    waiting: int = 0
    pages_total: int = 0
    pages_free: int = 0  # neither in use nor holding cached prefixes
    pages_cached: int = 0  # held by the prefix cache alone: reclaimable
    prompt_tokens: int = 0  # totals since the start
    prompt_tokens_computed: int = 0
    prompt_tokens_cached: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    steps: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0  # of those drafted
