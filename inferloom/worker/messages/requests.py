"""Gateway → worker."""

from __future__ import annotations

from typing import Literal

import msgspec


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


class Cancel(msgspec.Struct, tag="c", array_like=True):
    """End a request (choice -1) or one of its choices. Nothing is answered; unknown ids are ignored."""

    id: int
    choice: int = -1


class Embed(msgspec.Struct, tag="e", array_like=True):
    """Pooled, normalised embeddings of token sequences (special tokens included)."""

    id: int
    prompts: list[list[int]]


class Flush(msgspec.Struct, tag="f", array_like=True):
    """Drop the prefix cache; answered by `Stats`."""

    id: int


class GetStats(msgspec.Struct, tag="s", array_like=True):
    id: int


class Stop(msgspec.Struct, tag="q", array_like=True):
    """End the process now; requests in progress are lost. (Draining is the gateway's business.)"""


ToWorker = Generate | Cancel | Embed | Flush | GetStats | Stop
