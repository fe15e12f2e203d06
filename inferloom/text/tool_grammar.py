"""Grammars (Lark, as llguidance reads it) for answers with tool calls and for answers after a thought."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from inferloom.text.call_syntax import ARGUMENTS_MARK, CallSyntax
from inferloom.text.reasoning import ReasoningFormat
from inferloom.text.schemas import guided
from inferloom.types import Constraint, Tool

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Marks:
    """How a mark is written in a grammar: as a token where the vocabulary has it as one, as text otherwise.

    llguidance takes added tokens for tokens of their own if they are special or look like `<…>`; all others are
    text to it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._ids = {
            token.content: token_id
            for token_id, token in tokenizer.get_added_tokens_decoder().items()
            if token.special or (token.content.startswith("<") and token.content.endswith(">"))
        }

    def is_token(self, mark: str) -> bool:
        return mark in self._ids

    def __call__(self, mark: str) -> str:
        token_id = self._ids.get(mark)
        return _literal(mark) if token_id is None else f"<[{token_id}]>"


class ThoughtRule(msgspec.Struct, frozen=True):
    """The rules that let an answer begin with a thought: `start` is put before the answer's own."""

    start: str = ""
    rules: tuple[str, ...] = ()


def thought_rule(reasoning: ReasoningFormat | None, marks: Marks, *, opened: bool) -> ThoughtRule:
    """For a model that thinks. `opened`: the prompt ends inside a thought, so that it has to be closed first."""
    if reasoning is None:
        return ThoughtRule()
    opening = "" if opened else f"{marks(reasoning.opening)} "
    if marks.is_token(reasoning.closing):
        inside = [
            f"thought: {opening}THOUGHT? {marks(reasoning.closing)} GAP?",
            f"THOUGHT: {_without(reasoning.closing)}",
        ]
    else:
        inside = [
            f"thought: {opening}thinking GAP?",
            f"thinking[lazy]: /(?s:.*){_escape(reasoning.closing)}/",
        ]
    return ThoughtRule("thought " if opened else "thought? ", (*inside, r"GAP: /\n{1,2}/"))


def calls_grammar(
    syntax: CallSyntax,
    tools: Sequence[Tool],
    marks: Marks,
    *,
    thought: ThoughtRule,
    free_text: bool,
    several: bool,
    response: Constraint | None = None,
) -> Constraint:
    """An answer with calls of `tools`: with `free_text` they may be missing or come after text, otherwise the
    answer is one call (or more, with `several`) and nothing else. With `response` (no `lark`) an answer without
    calls must match it."""
    opening = marks(syntax.opening)
    bare = " | calls" if syntax.bare else ""
    lines = [f"start: {thought.start}answer", *thought.rules]
    if not free_text:
        lines.append("answer: calls" if syntax.bare else f"answer: {opening} calls")
    elif response is not None:
        lines += [f"answer: response | {opening} calls{bare}", f"response: {_response_body(response)}"]
    elif marks.is_token(syntax.opening):
        lines += [f"answer: TEXT? | TEXT? {opening} calls{bare}", f"TEXT: {_text_pattern(syntax)}"]
    else:
        # text and mark are of the same characters: the lazy rule ends at the first whole mark
        lines += [f"answer: TEXT? | head calls{bare}", f"TEXT: {_text_pattern(syntax)}"]
        lines.append(f"head[lazy]: /({_text_start(syntax)}(?s:.*))?{_escape(syntax.opening)}/")
    lines += _call_rules(syntax, tools, marks, several=several)
    return Constraint(kind="lark", value="\n".join(lines) + "\n")


def _text_start(syntax: CallSyntax) -> str:
    """Where a bare call may begin an answer, text does not begin with a brace."""
    return r"\s*[^{\s]" if syntax.bare else ""


def _text_pattern(syntax: CallSyntax) -> str:
    """Text without the opening."""
    return f"/{_text_start(syntax)}(?s:.*)/ & ~/(?s:.*){_escape(syntax.opening)}(?s:.*)/"


def _call_rules(syntax: CallSyntax, tools: Sequence[Tool], marks: Marks, *, several: bool) -> list[str]:
    """The rules `calls` (what follows the first opening) and, for every tool, its call."""
    opening, closing = marks(syntax.opening), marks(syntax.closing) if syntax.closing else ""
    names = " | ".join(f"call{index}" for index in range(len(tools)))
    rules = [f"any_call: {names}"]
    gap = '"\\n"' if syntax.newlines else ""
    if syntax.style == "array":
        more = ' (", " any_call)*' if several else ""
        rules.append(f'calls: " "? "[" any_call{more} "]" {closing}')
    elif syntax.separator:
        more = f" ({_literal(syntax.separator)} any_call)*" if several else ""
        rules.append(f"calls: any_call{more} {closing}")
    else:
        rules.append(f"one: {gap} any_call {gap} {closing}")
        between = f"{gap}? {opening}" if gap else opening
        rules.append(f"calls: one ({between} one)*" if several else "calls: one")
    for index, tool in enumerate(tools):
        rules.append(f"call{index}: {_one_call(syntax, tool, marks)}")
    return rules


def _one_call(syntax: CallSyntax, tool: Tool, marks: Marks) -> str:
    schema = guided(arguments_schema(tool), strict=tool.strict)
    body = f"%json {json.dumps(schema)}"
    if syntax.style == "named":
        return f"{_literal(tool.name)} {marks(ARGUMENTS_MARK)} {body}"
    head = f'{{"name": {json.dumps(tool.name)}, "{syntax.arguments_key}": '
    return f'{_literal(head)} {body} "}}"'


def arguments_schema(tool: Tool) -> Mapping[str, Any]:
    """A tool's parameters as the schema of an object."""
    parameters: Mapping[str, Any] = tool.parameters or {"properties": {}, "additionalProperties": False}
    return parameters if "type" in parameters else {"type": "object", **parameters}


def answer_grammar(constraint: Constraint, *, thought: ThoughtRule) -> Constraint:
    """A response format as the worker takes it: JSON in compact form, after a thought where the model thinks.

    A `lark` grammar is left as it is: its author says what the whole answer looks like.
    """
    if constraint.kind == "lark" or (constraint.kind == "regex" and not thought.start):
        return constraint
    if not thought.start:
        return Constraint(kind="json_schema", value=_compact_schema(constraint))
    lines = [*thought.rules, f"start: {thought.start}answer", f"answer: {_response_body(constraint)}"]
    return Constraint(kind="lark", value="\n".join(lines) + "\n")


def _compact_schema(constraint: Constraint) -> str:
    schema = msgspec.json.decode(constraint.value) if constraint.kind == "json_schema" else {"type": "object"}
    return json.dumps(guided(schema if isinstance(schema, dict) else {}))


def _response_body(constraint: Constraint) -> str:
    if constraint.kind == "regex":
        pattern = re.sub(r"(\\.)|/", lambda found: found[1] or r"\/", constraint.value)
        pattern = pattern.replace("\n", r"\n")
        return f"/{pattern}/"
    return f"%json {_compact_schema(constraint)}"


def _literal(text: str) -> str:
    """A string of the grammar; JSON's escapes are Lark's."""
    return json.dumps(text, ensure_ascii=False)


def _escape(text: str) -> str:
    """Text within /…/, every character that means something there taken literally."""
    return "".join(
        f"\\{character}" if not character.isalnum() and character not in "<>_ " else character
        for character in text
    )


def _without(mark: str) -> str:
    """A pattern for text that does not hold the mark."""
    return f"/(?s:.+)/ & ~/(?s:.*){_escape(mark)}(?s:.*)/"
