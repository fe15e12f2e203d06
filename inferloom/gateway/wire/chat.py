"""`POST /v1/chat/completions`: the request, and how its parts become what a runner takes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from inferloom.errors import InvalidRequest, Unsupported
from inferloom.gateway.wire.sampling import MAX_TOKENS, SamplingFields, refuse_shared
from inferloom.types import ChatMessage, Constraint, FunctionCall, Tool, ToolCall, ToolChoice


class Part(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One part of a message's content. Text is taken; other media are refused by name."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: Any = None
    input_audio: Any = None
    audio_url: Any = None
    video_url: Any = None
    file: Any = None


class WireFunctionCall(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    arguments: str = ""


class WireToolCall(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    id: str
    type: Literal["function"] = "function"
    function: WireFunctionCall
    index: int | None = None


class Message(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[WireToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    audio: Any = None
    function_call: Any = None


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    include_usage: bool | None = None


class WireFunction(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class WireTool(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    type: Literal["function"]
    function: WireFunction


class FunctionName(msgspec.Struct, forbid_unknown_fields=True):
    name: str


class AllowedTool(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    type: Literal["function"] = "function"
    function: FunctionName


class AllowedTools(msgspec.Struct, forbid_unknown_fields=True):
    mode: Literal["auto", "required"]
    tools: list[AllowedTool]


class NamedToolChoice(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """`{"type": "function", "function": {"name"}}` (the name may stand beside the type), or `allowed_tools`."""

    type: Literal["function", "allowed_tools"]
    function: FunctionName | None = None
    name: str | None = None
    allowed_tools: AllowedTools | None = None


class JsonSchemaFormat(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    name: str = ""
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class ChatRequest(SamplingFields, forbid_unknown_fields=True, kw_only=True):
    """The body of a chat request. `messages` may be a plain string: one message of the user."""

    messages: str | Annotated[list[Message], Meta(min_length=1)]
    max_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: list[WireTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    stream_options: StreamOptions | None = None
    # accepted; named in `x-inferloom-ignored` when given
    reasoning_effort: str | None = None
    verbosity: str | None = None
    # refused when true: the answer would begin otherwise
    echo: bool | None = None


def refuse_unsupported(request: ChatRequest) -> None:
    """Raise for fields whose silent absence would change the answer."""
    refuse_shared(request)
    if request.echo:
        raise Unsupported("`echo`", "chats answer with the new message only", param="echo")


def max_tokens(request: ChatRequest) -> int | None:
    """The limit by either of its names; None: the context that is left."""
    new, old = request.max_completion_tokens, request.max_tokens
    if new is not None and old is not None and new != old:
        raise InvalidRequest(
            f"`max_tokens` ({old}) and `max_completion_tokens` ({new}) contradict each other; send one of them.",
            param="max_tokens",
        )
    return new if new is not None else old


def messages(request: ChatRequest) -> tuple[ChatMessage, ...]:
    """The messages with text parts joined. Raises `InvalidRequest` naming the message that cannot be used."""
    given = request.messages
    if isinstance(given, str):
        return (ChatMessage(role="user", content=given),)
    return tuple([_message(message, index) for index, message in enumerate(given)])


def _message(message: Message, index: int) -> ChatMessage:
    content = message.content
    if isinstance(content, list):
        content = _joined(content, f"messages[{index}].content")
    role = message.role
    if role == "user" and message.tool_calls is None and content is not None and message.name is None:
        plain = message.audio is None and message.function_call is None and message.tool_call_id is None
        if plain and message.reasoning_content is None and message.refusal is None:
            return ChatMessage(role=role, content=content)
    return _full_message(message, content, f"messages[{index}]")


def _full_message(message: Message, content: str | None, place: str) -> ChatMessage:
    role = message.role
    if message.audio is not None:
        raise Unsupported("audio in messages", "the model reads text only", param=f"{place}.audio")
    if message.function_call is not None:
        raise Unsupported("`function_call`", "send `tool_calls`", param=f"{place}.function_call")
    if message.tool_calls and role != "assistant":
        raise InvalidRequest(
            "Only messages of the role assistant can have `tool_calls`.", param=f"{place}.tool_calls"
        )
    if role == "tool" and message.tool_call_id is None:
        raise InvalidRequest(
            "A message of the role tool needs `tool_call_id`: the id of the call it answers.",
            param=f"{place}.tool_call_id",
        )
    if content is None and message.refusal is not None:
        content = message.refusal
    if content is None and not (role == "assistant" and (message.tool_calls or message.reasoning_content)):
        raise InvalidRequest(
            f"`{place}.content` is missing: a message of the role {role} needs text.",
            param=f"{place}.content",
        )
    return ChatMessage(
        role=role,
        content=content,
        name=message.name,
        tool_calls=tuple(
            ToolCall(id=call.id, function=FunctionCall(call.function.name, call.function.arguments))
            for call in message.tool_calls or ()
        ),
        tool_call_id=message.tool_call_id,
        reasoning_content=message.reasoning_content,
    )


def _joined(parts: list[Part], place: str) -> str:
    texts: list[str] = []
    for index, part in enumerate(parts):
        if part.type in ("text", "refusal"):
            text = part.text if part.type == "text" else part.refusal
            if text is None:
                raise InvalidRequest(
                    f"`{place}[{index}]` is of the type {part.type} and has no `{part.type}`.",
                    param=f"{place}[{index}].{part.type}",
                )
            texts.append(text)
        else:
            raise Unsupported(
                f"content of the type {part.type[:40]!r}",
                "the model reads text only",
                param=f"{place}[{index}]",
            )
    return "".join(texts)


def tools(request: ChatRequest) -> tuple[Tool, ...]:
    found = tuple(
        Tool(
            name=tool.function.name,
            description=tool.function.description or "",
            parameters=tool.function.parameters or {},
            strict=bool(tool.function.strict),
        )
        for tool in request.tools or ()
    )
    names: set[str] = set()
    for index, tool in enumerate(found):
        place = f"tools[{index}].function.name"
        if tool.name in names:
            raise InvalidRequest(f"Two tools are named {tool.name!r}; names must differ.", param=place)
        names.add(tool.name)
    return found


def choose_tools(request: ChatRequest, declared: tuple[Tool, ...]) -> tuple[tuple[Tool, ...], ToolChoice]:
    """The tools that may be called, and whether one must be. Raises where a choice names no declared tool."""
    choice = request.tool_choice
    if choice is None or choice == "auto":
        return declared, ToolChoice(mode="auto")
    if choice == "none":
        return declared, ToolChoice(mode="none")
    if not declared:
        raise InvalidRequest("`tool_choice` asks for a call, but `tools` is empty.", param="tool_choice")
    if choice == "required":
        return declared, ToolChoice(mode="required")
    assert isinstance(choice, NamedToolChoice)
    by_name = {tool.name: tool for tool in declared}
    if choice.type == "allowed_tools":
        return _allowed(choice.allowed_tools, by_name)
    name = choice.function.name if choice.function is not None else choice.name
    if name is None:
        raise InvalidRequest("`tool_choice` needs the name of a function.", param="tool_choice.function.name")
    if name not in by_name:
        raise InvalidRequest(f"`tool_choice` names {name!r}, which is not in `tools`.", param="tool_choice")
    return declared, ToolChoice(mode="function", name=name)


def _allowed(allowed: AllowedTools | None, by_name: dict[str, Tool]) -> tuple[tuple[Tool, ...], ToolChoice]:
    if allowed is None or not allowed.tools:
        raise InvalidRequest("`allowed_tools` needs at least one tool.", param="tool_choice.allowed_tools")
    for tool in allowed.tools:
        if tool.function.name not in by_name:
            raise InvalidRequest(
                f"`allowed_tools` names {tool.function.name!r}, which is not in `tools`.", param="tool_choice"
            )
    wanted = {tool.function.name for tool in allowed.tools}
    return tuple(t for t in by_name.values() if t.name in wanted), ToolChoice(mode=allowed.mode)


def constraint(request: ChatRequest) -> Constraint | None:
    """What `response_format` demands of the answer."""
    wanted = request.response_format
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return Constraint(kind="json_object")
    if wanted.json_schema is None or wanted.json_schema.schema is None:
        raise InvalidRequest(
            "`response_format` of the type json_schema needs `json_schema.schema`.",
            param="response_format.json_schema.schema",
        )
    return Constraint(kind="json_schema", value=msgspec.json.encode(wanted.json_schema.schema).decode())
