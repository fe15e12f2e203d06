"""Tools of one model: how they are shown to it, what its answers must match, how calls are read from them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from inferloom.errors import InvalidRequest, Unsupported
from inferloom.text.call_syntax import (
    ARGUMENTS_MARK,
    CALL_ID_MARK,
    HERMES,
    LLAMA,
    MISTRAL_ARRAY,
    MISTRAL_NAMED,
    PHI,
    CallSyntax,
)
from inferloom.text.messages import tool_dict
from inferloom.text.reasoning import ReasoningFormat
from inferloom.text.tool_grammar import Marks, calls_grammar, thought_rule
from inferloom.text.tool_parser import ToolCallParser
from inferloom.types import ChatMessage, Constraint, Tool, ToolCall, ToolChoice

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_INTRODUCTION = (
    "You can call the functions that are described here, one JSON object for each:\n"
    "<tools>\n{tools}\n</tools>\n"
    "To call a function, write its name and arguments as a JSON object in this form:\n"
    '<tool_call>\n{{"name": "the function\'s name", "arguments": {{"an argument": "its value"}}}}\n</tool_call>'
)


class ToolFormat:
    """How one model calls tools.

    `native`: its chat template shows the tools. For any other template they are described in the system message,
    and calls and their results in the history are written out as text (`prepare`).
    """

    def __init__(
        self,
        name: str,
        syntax: CallSyntax,
        *,
        native: bool,
        tokenizer: Tokenizer,
        reasoning: ReasoningFormat | None,
    ) -> None:
        self.name = name
        self.syntax = syntax
        self.native = native
        self._marks = Marks(tokenizer)
        self._reasoning = reasoning
        added = {token.content: token_id for token_id, token in tokenizer.get_added_tokens_decoder().items()}
        inner = (ARGUMENTS_MARK, CALL_ID_MARK) if syntax.opening == MISTRAL_NAMED.opening else ()
        marks = (syntax.opening, syntax.closing, *inner)
        self.marker_ids = frozenset(added[mark] for mark in marks if mark in added)

    @classmethod
    def detect(
        cls, template: str, tokenizer: Tokenizer, *, reasoning: ReasoningFormat | None = None
    ) -> ToolFormat:
        """From the chat template's text. A template that knows tools in a way we cannot read is treated like one
        that knows none."""
        for name, syntax, telling in (
            ("mistral", MISTRAL_NAMED, ARGUMENTS_MARK),
            ("mistral-json", MISTRAL_ARRAY, "[TOOL_CALLS]"),
            ("phi", PHI, PHI.opening),
            ("hermes", HERMES, HERMES.opening),
            ("llama3-json", LLAMA, LLAMA.opening),
            ("llama3-json", LLAMA, '{"name": function name, "parameters":'),
        ):
            xml = name == "hermes" and "<function=" in template
            if re.search(r"\btools\b", template) and telling in template and not xml:
                return cls(name, syntax, native=True, tokenizer=tokenizer, reasoning=reasoning)
        return cls("default", HERMES, native=False, tokenizer=tokenizer, reasoning=reasoning)

    def constraint(
        self,
        tools: Sequence[Tool],
        choice: ToolChoice,
        *,
        thinking: bool = False,
        parallel: bool = True,
        response: Constraint | None = None,
    ) -> Constraint | None:
        """What the answer must match: with `auto` free text in which calls are valid once begun, with `required`
        or a named function valid calls alone. None for `none`, or without tools.

        `thinking`: the prompt ends inside a thought. `parallel`: several calls are allowed. `response`: what an
        answer without calls must match.
        Raises `InvalidRequest` where the choice cannot be met.
        """
        if choice.mode == "none":
            return None
        if not tools:
            if choice.mode == "auto":
                return None
            raise InvalidRequest("tool_choice asks for a call, but there are no tools", param="tool_choice")
        if choice.mode == "function":
            tools = [tool for tool in tools if tool.name == choice.name]
            if not tools:
                raise InvalidRequest(
                    f"tool_choice names the function {choice.name!r}, which is not among the tools",
                    param="tool_choice",
                )
        if response is not None and response.kind == "lark" and choice.mode == "auto":
            raise Unsupported(
                "a grammar together with tools", "a Lark grammar is the whole answer's", param="grammar"
            )
        return calls_grammar(
            self.syntax,
            tools,
            self._marks,
            thought=thought_rule(self._reasoning, self._marks, opened=thinking),
            free_text=choice.mode == "auto",
            several=parallel and choice.mode != "function",
            response=response,
        )

    def parser(self, tools: Sequence[Tool]) -> ToolCallParser:
        return ToolCallParser(self.syntax, tools)

    def prepare(self, messages: Sequence[ChatMessage], tools: Sequence[Tool]) -> list[ChatMessage]:
        """The messages as the template can take them."""
        if self.native:
            if self.syntax.opening == MISTRAL_ARRAY.opening:
                return [_with_short_ids(message) for message in messages]
            return list(messages)
        written = [_written_out(message) for message in messages]
        if not tools:
            return written
        described = "\n".join(json.dumps(tool_dict(tool), ensure_ascii=False) for tool in tools)
        introduction = _INTRODUCTION.format(tools=described)
        if written and written[0].role in ("system", "developer"):
            first = written[0]
            content = f"{first.content}\n\n{introduction}" if first.content else introduction
            return [msgspec.structs.replace(first, content=content), *written[1:]]
        return [ChatMessage(role="system", content=introduction), *written]


def _written_out(message: ChatMessage) -> ChatMessage:
    """Calls and results as text, for a template that knows neither."""
    if message.tool_calls:
        calls = "\n".join(_call_text(call) for call in message.tool_calls)
        content = f"{message.content}\n{calls}" if message.content else calls
        return msgspec.structs.replace(message, content=content, tool_calls=())
    if message.role == "tool":
        return ChatMessage(role="user", content=f"<tool_response>\n{message.content or ''}\n</tool_response>")
    return message


def _call_text(call: ToolCall) -> str:
    arguments: Any = call.function.arguments.strip() or "{}"
    return (
        f'<tool_call>\n{{"name": {json.dumps(call.function.name)}, "arguments": {arguments}}}\n</tool_call>'
    )


def _with_short_ids(message: ChatMessage) -> ChatMessage:
    """Mistral's templates insist on call ids of nine letters or digits."""
    if message.tool_call_id is not None:
        return msgspec.structs.replace(message, tool_call_id=_short_id(message.tool_call_id))
    if message.tool_calls:
        calls = tuple(msgspec.structs.replace(call, id=_short_id(call.id)) for call in message.tool_calls)
        return msgspec.structs.replace(message, tool_calls=calls)
    return message


def _short_id(call_id: str) -> str:
    if len(call_id) == 9 and call_id.isalnum():
        return call_id
    return hashlib.sha256(call_id.encode()).hexdigest()[:9]
