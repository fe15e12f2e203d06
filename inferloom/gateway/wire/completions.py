"""`POST /v1/completions`: the request, and its prompts."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from inferloom.errors import InvalidRequest, Unsupported
from inferloom.gateway.wire.chat import StreamOptions
from inferloom.gateway.wire.sampling import MAX_CHOICES, MAX_TOKENS, SamplingFields, refuse_shared

DEFAULT_MAX_TOKENS = 16  # OpenAI's default for this endpoint


class CompletionRequest(SamplingFields, forbid_unknown_fields=True, kw_only=True):
    """The body of a completion request. `prompt`: a text, texts, token ids, or lists of token ids."""

    prompt: str | list[Any]
    max_tokens: Annotated[int, Meta(ge=0, le=MAX_TOKENS)] | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    echo: bool | None = None
    stream_options: StreamOptions | None = None
    # refused when given: they belong to chats, and ignoring them would change the answer
    messages: Any = None
    tools: Any = None
    tool_choice: Any = None
    response_format: Any = None


OF_CHATS = ("messages", "tools", "tool_choice", "response_format")
_NOTHING: tuple[object, ...] = (None, [], "none", {"type": "text"})  # what asks for nothing


def refuse_unsupported(request: CompletionRequest) -> None:
    """Raise for fields whose silent absence would change the answer."""
    refuse_shared(request)
    for field in OF_CHATS:
        if getattr(request, field) not in _NOTHING:
            raise Unsupported(f"`{field}`", "it belongs to /v1/chat/completions; send it there", param=field)
    if request.max_tokens == 0 and not request.echo:
        raise InvalidRequest(
            "`max_tokens` is 0 and `echo` is off: nothing would be answered. Send at least 1, or `echo: true`.",
            param="max_tokens",
        )


def prompts(request: CompletionRequest) -> list[str | list[int]]:
    """Every prompt as text or token ids. Raises `InvalidRequest` for what is neither."""
    found = split(request.prompt, field="prompt")
    if len(found) * (request.n or 1) > MAX_CHOICES:
        raise InvalidRequest(
            f"{len(found)} prompts × n = {request.n or 1} are more than {MAX_CHOICES} choices; send several requests.",
            param="prompt",
        )
    return found


def split(given: str | list[Any], *, field: str) -> list[str | list[int]]:
    """A text, texts, token ids or lists of token ids as a list of texts and lists of token ids."""
    if isinstance(given, str):
        return [given]
    if not given:
        raise InvalidRequest(f"`{field}` is empty: send text or token ids.", param=field)
    if isinstance(given[0], int | float):
        return [_token_ids(given, field)]
    return [
        item if isinstance(item, str) else _token_ids(item, f"{field}[{index}]")
        for index, item in enumerate(given)
    ]


def _token_ids(given: Any, place: str) -> list[int]:
    if not isinstance(given, list):
        raise InvalidRequest(
            f"`{place}` must be text or a list of token ids, not {_kind(given)}.",
            param=place.partition("[")[0],
        )
    tokens: list[int] = given
    if any(token.__class__ is float for token in given):  # JSON's 1.0 is 1
        tokens = [int(token) if isinstance(token, float) and token.is_integer() else token for token in given]
    for token in tokens:
        if token.__class__ is not int or not 0 <= token <= MAX_TOKENS:
            raise InvalidRequest(
                f"`{place}` holds something that is not a token id (a whole number from 0).",
                param=place.partition("[")[0],
            )
    return tokens


def _kind(value: object) -> str:
    kinds = {bool: "a boolean", int: "a number", float: "a number", dict: "an object", list: "a list"}
    return "null" if value is None else kinds.get(type(value), "that")
