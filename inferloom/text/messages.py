"""Chat messages and tools in the shape that chat templates expect (that of `transformers`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from inferloom.types import ChatMessage, Tool

_ORDINARY_MESSAGES = 1000
_ORDINARY_CHARACTERS = 1 << 20


def message_dicts(messages: Sequence[ChatMessage], *, developer: bool) -> list[dict[str, Any]]:
    """One dictionary a message. `developer`: the template knows that role; otherwise it becomes `system`.

    Absent content is "" (templates concatenate it), arguments of calls are objects where they are JSON objects
    (templates serialise them again) and the text itself otherwise.
    """
    return [_message_dict(message, developer=developer) for message in messages]


def _message_dict(message: ChatMessage, *, developer: bool) -> dict[str, Any]:
    role = message.role
    if role == "developer" and not developer:
        role = "system"
    made: dict[str, Any] = {"role": role, "content": "" if message.content is None else message.content}
    if message.name is not None:
        made["name"] = message.name
    if message.tool_call_id is not None:
        made["tool_call_id"] = message.tool_call_id
    if message.reasoning_content is not None:
        made["reasoning_content"] = message.reasoning_content
        made["thinking"] = message.reasoning_content  # the name some templates know
    if message.tool_calls:
        made["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.function.name, "arguments": _arguments(call.function.arguments)},
            }
            for call in message.tool_calls
        ]
    return made


def _arguments(text: str) -> Any:
    if not text.strip():
        return {}
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return text
    return value if isinstance(value, dict) else text


def tool_dict(tool: Tool) -> dict[str, Any]:
    """A tool as OpenAI's API writes it; templates serialise it, so the order of keys is the usual one."""
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    function["parameters"] = tool.parameters or {"type": "object", "properties": {}}
    if tool.strict:
        function["strict"] = True
    return {"type": "function", "function": function}


def is_ordinary(messages: Sequence[ChatMessage]) -> bool:
    """Whether a template has to manage this many messages of this length within its limits."""
    characters = sum(len(message.content or "") for message in messages)
    return len(messages) <= _ORDINARY_MESSAGES and characters <= _ORDINARY_CHARACTERS
