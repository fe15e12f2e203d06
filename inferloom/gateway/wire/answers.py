"""Answers to chat and completion requests as they travel, whole. Streams are written by `sse.py`."""

from __future__ import annotations

from typing import Literal

import msgspec

from inferloom.types import TokenLogprob, Usage


class CachedTokens(msgspec.Struct):
    cached_tokens: int = 0


class UsageBody(msgspec.Struct, kw_only=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


def usage_body(usage: Usage) -> UsageBody:
    return UsageBody(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        prompt_tokens_details=CachedTokens(usage.cached_tokens),
    )


# --- chat -----------------------------------------------------------------------------------------------------------


class TopLogprobBody(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class LogprobBody(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprobBody]


class ChatLogprobs(msgspec.Struct):
    content: list[LogprobBody]
    refusal: None = None


def chat_logprobs(tokens: list[TokenLogprob] | tuple[TokenLogprob, ...]) -> ChatLogprobs:
    return ChatLogprobs(
        [
            LogprobBody(
                token.token,
                finite(token.logprob),
                list(token.bytes),
                [TopLogprobBody(top.token, finite(top.logprob), list(top.bytes)) for top in token.top],
            )
            for token in tokens
        ]
    )


def finite(logprob: float | None) -> float:
    """JSON has no infinity: -9999.0, as in OpenAI's answers, is what cannot happen."""
    if logprob is None or not logprob > -9999.0:
        return -9999.0
    return logprob


class FunctionBody(msgspec.Struct):
    name: str
    arguments: str


class ToolCallBody(msgspec.Struct, kw_only=True):
    id: str
    type: Literal["function"] = "function"
    function: FunctionBody


class AnswerMessage(msgspec.Struct, kw_only=True):
    """`tool_calls` and `reasoning_content` are there only where there is something to say."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[ToolCallBody] | msgspec.UnsetType = msgspec.UNSET


class ChatChoice(msgspec.Struct, kw_only=True):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length", "tool_calls", "content_filter"]


class ChatResponse(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageBody


# --- completions ----------------------------------------------------------------------------------------------------


class LegacyLogprobs(msgspec.Struct):
    """One entry per token in each list. `text_offset` counts characters from the start of `text`."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


def legacy_logprobs(
    tokens: list[TokenLogprob] | tuple[TokenLogprob, ...], *, offset: int, top: bool
) -> LegacyLogprobs:
    """`offset`: characters of the tokens before these. `top`: whether the request asked for alternatives."""
    offsets: list[int] = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.token)
    return LegacyLogprobs(
        [token.token for token in tokens],
        [None if token.logprob is None else finite(token.logprob) for token in tokens],
        [
            None if token.logprob is None else {best.token: finite(best.logprob) for best in token.top}
            for token in tokens
        ]
        if top
        else None,
        offsets,
    )


class CompletionChoice(msgspec.Struct, kw_only=True):
    text: str
    index: int
    logprobs: LegacyLogprobs | None = None
    finish_reason: Literal["stop", "length", "content_filter"]


class CompletionResponse(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageBody
