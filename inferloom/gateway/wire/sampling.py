"""The fields that chat and completion requests share."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from inferloom.errors import InvalidRequest, Unsupported
from inferloom.gateway.wire.keeping import KeepAlive
from inferloom.gateway.wire.patience import TimeoutSecs
from inferloom.types import Sampling

MAX_TOKENS = 2**31 - 1
MAX_CHOICES = 128
MAX_STOPS = 16  # OpenAI allows 4

StopText = Annotated[str, Meta(min_length=1)]  # an empty one would stop before the first token
TokenId = Annotated[int, Meta(ge=0, le=MAX_TOKENS)]


class SamplingFields(msgspec.Struct, kw_only=True):
    model: str | None = None
    stream: bool | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=MAX_TOKENS)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=100)] | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: StopText | list[StopText | TokenId] | None = None
    stop_token_ids: list[TokenId] | None = None
    ignore_eos: bool | None = None
    keep_alive: KeepAlive | None = None
    timeout_secs: TimeoutSecs | None = None
    # accepted; named in `x-inferloom-ignored` when given
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    # refused when given: ignoring them would change the answer
    modalities: list[str] | None = None
    audio: Any = None
    prediction: Any = None
    web_search_options: Any = None
    functions: Any = None
    function_call: Any = None
    tokenizer_config: Any = None
    suffix: str | None = None
    best_of: Annotated[int, Meta(ge=1)] | None = None


REFUSED: dict[str, str] = {
    "audio": "this server makes text only; leave the field out",
    "prediction": "predicted outputs are not used here; leave the field out",
    "web_search_options": "this server does not search the web; leave the field out",
    "functions": "it was replaced by `tools` in OpenAI's API; use `tools` of /v1/chat/completions",
    "function_call": "it was replaced by `tool_choice` in OpenAI's API; use `tool_choice` of /v1/chat/completions",
    "tokenizer_config": "the tokenizer belongs to the model's checkpoint; set `tok_model_id` in the configuration",
    "suffix": "the model continues text, it does not fill gaps",
}

IGNORED = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "prompt_cache_key",
    "safety_identifier",
    "reasoning_effort",
    "verbosity",
)


def refuse_shared(request: SamplingFields) -> None:
    """Raise for fields of either endpoint whose silent absence would change the answer."""
    for field, why in REFUSED.items():
        if getattr(request, field) not in (None, ""):
            raise Unsupported(f"`{field}`", why, param=field)
    if request.modalities is not None and request.modalities != ["text"]:
        raise Unsupported("`modalities`", 'only ["text"] can be asked for', param="modalities")
    if request.best_of is not None and request.best_of > 1:
        raise Unsupported("`best_of`", "choices are not ranked here; ask for `n` choices", param="best_of")


def sampling(request: SamplingFields) -> Sampling:
    """The sampling as the request gave it; `top_k: -1` is another way to say off (0)."""
    top_k = request.top_k
    return Sampling(
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=0 if top_k == -1 else top_k,
        min_p=request.min_p,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        repetition_penalty=request.repetition_penalty,
        logit_bias=_bias(request.logit_bias) if request.logit_bias else {},
        seed=request.seed,
    )


def _bias(given: dict[str, float]) -> dict[int, float]:
    bias: dict[int, float] = {}
    for key, value in given.items():
        if not (key.isascii() and key.isdigit()) or len(key) > 10 or int(key) > MAX_TOKENS:
            raise InvalidRequest(
                f"`logit_bias` has the key {key[:40]!r}: keys are token ids.", param="logit_bias"
            )
        bias[int(key)] = value
    return bias


def stops(request: SamplingFields) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Stop strings, and stop token ids: from `stop_token_ids`, and the numbers in `stop`."""
    given = request.stop
    texts: tuple[str, ...]
    ids: tuple[int, ...] = tuple(request.stop_token_ids) if request.stop_token_ids else ()
    if given is None:
        texts = ()
    elif isinstance(given, str):
        texts = (given,)
    else:
        texts = tuple([stop for stop in given if isinstance(stop, str)])
        ids += tuple([stop for stop in given if not isinstance(stop, str)])
    if len(texts) > MAX_STOPS or len(ids) > 4 * MAX_STOPS:
        raise InvalidRequest(
            f"`stop` takes at most {MAX_STOPS} strings and {4 * MAX_STOPS} token ids.", param="stop"
        )
    return texts, ids
