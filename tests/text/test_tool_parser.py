from __future__ import annotations

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferloom.text.call_syntax import HERMES, LLAMA, MISTRAL_ARRAY, MISTRAL_NAMED, PHI, CallSyntax
from inferloom.text.tool_parser import ToolCallParser
from inferloom.types import Tool, ToolCallDelta

TOOLS = [Tool(name="get_weather"), Tool(name="search"), Tool(name="now")]
WEATHER = ("get_weather", '{"city": "Paris {\\"quoted\\"} ] }"}')
SEARCH = ("search", '{"query": "rust", "tags": [{"a": 1}]}')
W, S = WEATHER[1], SEARCH[1]

CASES: list[tuple[CallSyntax, str, str, list[tuple[str, str]]]] = [
    (HERMES, f'<tool_call>\n{{"name": "get_weather", "arguments": {W}}}\n</tool_call>', "", [WEATHER]),
    (HERMES, f'Before <tool_call>{{"name":"get_weather","arguments":{W}}}</tool_call>', "Before ", [WEATHER]),
    (
        HERMES,
        f'\n\n<tool_call>{{"name":"search","arguments":{S}}}</tool_call>\n<tool_call>{{"arguments":{W},"name":"get_weather"}}</tool_call>\n',
        "",
        [SEARCH, WEATHER],
    ),
    (HERMES, f'a<tool_call>{{"name":"search","arguments":{S}}}</tool_call> and b', "a and b", [SEARCH]),
    (HERMES, f'<tool_call>{{"id": 3, "name":"search","arguments":{S}}}', "", [SEARCH]),
    (HERMES, '<tool_call>{"name": "now"}</tool_call>', "", [("now", "{}")]),
    (HERMES, '<tool_call>{"name": "now", "arguments": null}</tool_call>', "", [("now", "{}")]),
    (HERMES, '<tool_call>{"name": "now", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("now", '{"a": 1}')]),
    (HERMES, "no call <tool_ca", "no call <tool_ca", []),
    (HERMES, "<tool_call>not json</tool_call>", "<tool_call>not json</tool_call>", []),
    (HERMES, '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>', '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>', []),
    (HERMES, '<tool_call>{"name": "now", "arguments": 3}</tool_call>', '<tool_call>{"name": "now", "arguments": 3}</tool_call>', []),
    (HERMES, '<tool_call>{"name": "sea', '<tool_call>{"name": "sea', []),
    (HERMES, '<tool_call>{"name": "search", "arguments": {"query": "ru', "", [("search", '{"query": "ru')]),
    (HERMES, "  \n", "  \n", []),
    (LLAMA, f'{{"name": "search", "parameters": {S}}}', "", [SEARCH]),
    (LLAMA, f'  {{"name": "search", "parameters": {S}}}; {{"name": "get_weather", "parameters": {W}}}', "", [SEARCH, WEATHER]),
    (LLAMA, f'<|python_tag|>{{"name": "search", "parameters": {S}}}', "", [SEARCH]),
    (LLAMA, f'I\'ll check.<|python_tag|>{{"name":"search","parameters":{S}}}', "I'll check.", [SEARCH]),
    (LLAMA, '{"just": "json"}', '{"just": "json"}', []),
    (LLAMA, 'Later {"name": "now", "parameters": {}}', 'Later {"name": "now", "parameters": {}}', []),
    (MISTRAL_ARRAY, f'I\'ll check.[TOOL_CALLS] [{{"name": "search", "arguments": {S}}}, {{"name": "get_weather", "arguments": {W}, "id": "abcdefghi"}}]', "I'll check.", [SEARCH, WEATHER]),
    (MISTRAL_ARRAY, f'[TOOL_CALLS]search[ARGS]{S}', "", [SEARCH]),
    (MISTRAL_NAMED, f"[TOOL_CALLS]search[ARGS]{S}[TOOL_CALLS]get_weather[CALL_ID]abc[ARGS] {W}", "", [SEARCH, WEATHER]),
    (MISTRAL_NAMED, f"[TOOL_CALLS]search{S}", "", [SEARCH]),
    (MISTRAL_NAMED, "[TOOL_CALLS]nobody[ARGS]{}", "[TOOL_CALLS]nobody[ARGS]{}", []),
    (PHI, f'<|tool_call|>[{{"name": "search", "arguments": {S}}}]<|/tool_call|>', "", [SEARCH]),
]  # fmt: skip


def parse(syntax: CallSyntax, pieces: list[str], *, cut: bool = False) -> tuple[str, list[ToolCallDelta]]:
    parser, visible, deltas = ToolCallParser(syntax, TOOLS), "", []
    for text, told in [*(parser.push(piece) for piece in pieces), parser.flush(cut=cut)]:
        visible += text
        deltas += told
    assert parser.calls == len({delta.index for delta in deltas})
    return visible, deltas


def joined(deltas: list[ToolCallDelta]) -> list[tuple[str, str]]:
    calls: list[tuple[str, str]] = []
    for delta in deltas:
        if delta.name is not None:
            assert delta.index == len(calls)
            calls.append((delta.name, ""))
        assert delta.index == len(calls) - 1
        calls[-1] = (calls[-1][0], calls[-1][1] + delta.arguments)
    return calls


@pytest.mark.parametrize(("syntax", "text", "visible", "calls"), CASES)
def test_calls_and_text_are_told_apart_however_the_text_is_cut(
    syntax: CallSyntax, text: str, visible: str, calls: list[tuple[str, str]]
) -> None:
    chance = random.Random(text)
    cuts = [[text], list(text)]
    for _ in range(20):
        points = sorted(chance.choices(range(len(text) + 1), k=4))
        cuts.append([text[a:b] for a, b in zip([0, *points], [*points, len(text)], strict=True)])
    for pieces in cuts:
        said, deltas = parse(syntax, pieces)
        assert said == visible
        assert joined(deltas) == calls


def test_index_id_and_name_come_first_and_arguments_follow_as_they_come() -> None:
    parser = ToolCallParser(HERMES, TOOLS)
    assert parser.push('Hm <tool_call>\n{"name": "search", "argu') == ("Hm ", [])
    text, (head, first) = parser.push('ments": {"query": "r')
    assert text == ""
    assert (head.index, head.name, head.arguments) == (0, "search", "")
    assert head.id is not None
    assert re.fullmatch(r"call_[0-9a-f]{24}", head.id)
    assert first == ToolCallDelta(index=0, arguments='{"query": "r')
    assert parser.push("us") == ("", [ToolCallDelta(index=0, arguments="us")])
    assert parser.push('t"}}\n</tool_call>') == ("", [ToolCallDelta(index=0, arguments='t"}')])
    assert parser.flush() == ("", [])


def test_the_ids_of_two_calls_differ() -> None:
    text = '<tool_call>{"name": "now"}</tool_call>' * 2
    _, deltas = parse(HERMES, [text])
    ids = [delta.id for delta in deltas if delta.id]
    assert len(ids) == len(set(ids)) == 2


def test_text_after_a_broken_call_is_still_read() -> None:
    text = '<tool_call>oops <tool_call>{"name": "now", "arguments": {}}</tool_call>'
    said, deltas = parse(HERMES, [text])
    assert said == "<tool_call>oops "
    assert joined(deltas) == [("now", "{}")]


def test_ordinary_text_is_not_held_back() -> None:
    parser = ToolCallParser(HERMES, TOOLS)
    assert parser.push("The answer") == ("The answer", [])
    assert parser.push(" is 1 <") == (" is 1 ", [])
    assert parser.push(" 2") == ("< 2", [])


CALLED = '{"name": "now", "arguments": {}}'


@pytest.mark.parametrize(
    ("syntax", "text", "visible", "calls"),
    [
        (HERMES, 'Hm. <tool_call>\n{"na', "Hm. ", []),
        (HERMES, '<tool_call>\n{"name": "sea', "", []),
        (HERMES, '<tool_call>\n{"name": "search", "arguments": ', "", []),
        (HERMES, "<tool_call>", "", []),
        (HERMES, '<tool_call>{"name": "search", "arguments": {"qu', "", [("search", '{"qu')]),
        (HERMES, f'<tool_call>{CALLED}</tool_call>\n<tool_call>{{"name": "se', "", [("now", "{}")]),
        (HERMES, "a <tool", "a <tool", []),  # so far a text like any other
        (PHI, f'<|tool_call|>[{CALLED}, {{"na', "", [("now", "{}")]),
        (MISTRAL_NAMED, "[TOOL_CALLS]sea", "", []),
        (LLAMA, '<|python_tag|>{"name": "sea', "", []),
        (LLAMA, f'{CALLED}; {{"name": "sea', "", [("now", "{}")]),
        (LLAMA, '{"name": "sea', '{"name": "sea', []),  # perhaps the answer is JSON
    ],
)
def test_a_call_that_is_cut_before_its_name_is_certain_is_neither_a_call_nor_text(
    syntax: CallSyntax, text: str, visible: str, calls: list[tuple[str, str]]
) -> None:
    for pieces in ([text], list(text)):
        said, deltas = parse(syntax, pieces, cut=True)
        assert said == visible
        assert joined(deltas) == calls


FRAGMENTS = [
    '{"name": "now", "',
    'arguments": {',
    'parameters": {',
    "}",
    "}",
    "[",
    "]",
    ",",
    ";",
    '"a": "x\\"y"',
    " ",
    "\n",
]
FRAGMENTS += ["[ARGS]", "now", '{"name":"search"}', "text", "<", "[TOOL"]


@settings(max_examples=600, deadline=None, derandomize=True)
@given(st.data())
def test_the_cut_never_matters_whatever_nonsense_a_model_writes(data: st.DataObject) -> None:
    syntax = data.draw(st.sampled_from([HERMES, LLAMA, MISTRAL_ARRAY, MISTRAL_NAMED, PHI]))
    marks = [syntax.opening, syntax.closing]
    pieces = data.draw(st.lists(st.sampled_from(FRAGMENTS + marks), max_size=12))
    text = "".join(pieces)
    (whole, calls), *others = [parse(syntax, cut) for cut in ([text], list(text), pieces)]
    for said, deltas in others:
        assert said == whole
        assert joined(deltas) == joined(calls)
