"""How models write tool calls: the marks around them and what stands between."""

from __future__ import annotations

from typing import Literal

import msgspec

CallStyle = Literal["object", "array", "named"]


class CallSyntax(msgspec.Struct, frozen=True, kw_only=True):
    """The calls of one model family.

    `object`: every call is a JSON object with the keys `name` and `arguments_key`, between `opening` and `closing`.
    `array`: one list of such objects. `named`: the name as plain text, `[ARGS]`, and the arguments' object.
    `bare`: a call may also stand without the opening, if the answer begins with it.
    """

    style: CallStyle
    opening: str
    closing: str = ""
    arguments_key: str = "arguments"
    bare: bool = False
    separator: str = ""  # between two calls, where the opening is not repeated
    newlines: bool = False  # the object stands on a line of its own


HERMES = CallSyntax(style="object", opening="<tool_call>", closing="</tool_call>", newlines=True)
LLAMA = CallSyntax(
    style="object", opening="<|python_tag|>", arguments_key="parameters", bare=True, separator="; "
)
MISTRAL_ARRAY = CallSyntax(style="array", opening="[TOOL_CALLS]")
MISTRAL_NAMED = CallSyntax(style="named", opening="[TOOL_CALLS]")
PHI = CallSyntax(style="array", opening="<|tool_call|>", closing="<|/tool_call|>")

ARGUMENTS_MARK = "[ARGS]"
CALL_ID_MARK = "[CALL_ID]"
