"""Grammars are compiled by llguidance and walked at random: whatever ends must be what was asked for."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any, Literal

import jsonschema
import llguidance.numpy
import numpy as np
import pytest
from factories.chat_templates import CHATML, LLAMA, MISTRAL, QWEN
from llguidance import LLMatcher, LLTokenizer
from tokenizers import Tokenizer

from inferloom.text.answer import AnswerPlan, Piece
from inferloom.text.codec import TextCodec
from inferloom.types import ChatMessage, Constraint, ExecuteBatch, Tool, ToolChoice

TEMPLATES = {
    "hermes": QWEN,
    "llama": LLAMA,
    "mistral": MISTRAL,
    "mistral named": MISTRAL + "{#[ARGS]#}",
    "phi": "{{ tools }}<|tool_call|>{{ messages }}",
    "default": CHATML,
}

TOOLS = [
    Tool(name="now"),
    Tool(
        name="get_weather",
        parameters={
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 6},
                "days": {"type": "integer", "minimum": 1, "maximum": 14},
                "units": {"enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city"],
            "additionalProperties": False,
        },
    ),
    Tool(
        name="get_weather_2",
        strict=True,
        parameters={
            "properties": {"where": {"$ref": "#/$defs/place"}, "exact": {"type": "boolean"}},
            "required": ["where", "exact"],
            "$defs": {
                "place": {
                    "type": "object",
                    "properties": {"x": {"type": "number", "minimum": 0}, "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2}},
                    "required": ["x"],
                    "additionalProperties": False,
                }
            },
        },
    ),
]  # fmt: skip
SCHEMAS = {tool.name: tool.parameters or {"type": "object"} for tool in TOOLS}


class Walker:
    """Writes answers by drawing among the tokens that the mask allows, the wanted ones more often."""

    def __init__(self, codec: TextCodec) -> None:
        self.codec = codec
        (self.eos,) = codec.eos_token_ids
        self.tokenizer = LLTokenizer(codec.tokenizer.to_str(), n_vocab=codec.vocab_size, eos_token=self.eos)

    def walk(self, constraint: Constraint, *, seed: int, wanted: tuple[int, ...] = ()) -> list[int] | None:
        """Token ids of one answer, without its end token; None where it did not end."""
        grammar: Callable[[str], str] = getattr(
            LLMatcher, "grammar_from_lark" if constraint.kind == "lark" else f"grammar_from_{constraint.kind}"
        )
        matcher = LLMatcher(self.tokenizer, grammar(constraint.value), log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        chance = random.Random(seed)
        mask = llguidance.numpy.allocate_token_bitmask(1, self.codec.vocab_size)
        ids: list[int] = []
        for _ in range(600):
            llguidance.numpy.fill_next_token_bitmask(matcher, mask, 0)
            allowed = np.flatnonzero(
                np.unpackbits(mask.view(np.uint8), bitorder="little")[: self.codec.vocab_size]
            )
            assert len(allowed), matcher.get_error()
            preferred = [token for token in wanted if token in allowed]
            chosen = (
                chance.choice(preferred)
                if preferred and chance.random() < 0.2
                else chance.choice(list(allowed))
            )
            if chosen == self.eos:
                return ids
            assert matcher.consume_token(int(chosen)), matcher.get_error()
            ids.append(int(chosen))
            if matcher.is_stopped():
                return ids
        return None


@pytest.fixture(scope="module")
def walkers(byte_bpe: Tokenizer, llama_bpe: Tokenizer) -> dict[str, Walker]:
    special = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    tokenizer = Tokenizer.from_str(byte_bpe.to_str())
    made = {
        name: Walker(TextCodec(tokenizer, templates={"default": template}, special_tokens=special))
        for name, template in TEMPLATES.items()
    }
    pieces = Tokenizer.from_str(llama_bpe.to_str())
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    made["sentencepiece"] = Walker(TextCodec(pieces, templates={"default": MISTRAL}, special_tokens=special))
    return made


def plan_of(walker: Walker, **fields: Any) -> AnswerPlan:
    messages = (ChatMessage(role="user", content="Hi"),)
    return AnswerPlan(walker.codec, ExecuteBatch(request_id="r", model="m", messages=messages, **fields))


def read(plan: AnswerPlan, ids: list[int]) -> tuple[str, str, list[tuple[str, Any]]]:
    """Reasoning, content and calls, the tokens pushed one by one."""
    reader = plan.reader()
    pieces: list[Piece] = [*(reader.push([token]) for token in ids), reader.flush()]
    calls: list[list[str]] = []
    for piece in pieces:
        for delta in piece.tool_calls:
            if delta.name is not None:
                calls.append([delta.name, ""])
            calls[-1][1] += delta.arguments
    assert reader.called is bool(calls)
    return (
        "".join(piece.reasoning for piece in pieces),
        "".join(piece.text for piece in pieces),
        [(name, json.loads(arguments)) for name, arguments in calls],
    )


def wanted(walker: Walker) -> tuple[int, ...]:
    """The end of the answer and of thoughts, and the marks of calls: so that walks get to calls, and end."""
    codec = walker.codec
    thought = codec.reasoning.marker_ids if codec.reasoning is not None else ()
    return (walker.eos, *thought, *codec.tool_format.marker_ids)


def check_calls(calls: list[tuple[str, Any]]) -> None:
    for name, arguments in calls:
        jsonschema.validate(arguments, SCHEMAS[name])


@pytest.mark.parametrize("name", [*TEMPLATES, "sentencepiece"])
def test_with_required_whatever_ends_is_valid_calls_and_nothing_else(
    name: str, walkers: dict[str, Walker]
) -> None:
    walker, ended, names = walkers[name], 0, set()
    plan = plan_of(walker, tools=tuple(TOOLS), tool_choice=ToolChoice(mode="required"))
    assert plan.constraint is not None
    for seed in range(30):
        ids = walker.walk(plan.constraint, seed=seed, wanted=wanted(walker))
        if ids is None:
            continue
        _, content, calls = read(plan, ids)
        assert content == ""
        assert calls
        check_calls(calls)
        ended += 1
        names |= {call for call, _ in calls}
    assert ended >= 15
    assert names == set(SCHEMAS)


@pytest.mark.parametrize("name", [*TEMPLATES, "sentencepiece"])
@pytest.mark.parametrize("mode", ["required", "auto"])
def test_without_parallel_calls_there_is_one_at_most(
    name: str, mode: Literal["required", "auto"], walkers: dict[str, Walker]
) -> None:
    walker, counts = walkers[name], []
    choice = ToolChoice(mode=mode)
    plan = plan_of(walker, tools=tuple(TOOLS), tool_choice=choice, parallel_tool_calls=False)
    assert plan.constraint is not None
    for seed in range(15):
        ids = walker.walk(plan.constraint, seed=seed, wanted=wanted(walker))
        if ids is not None:
            counts.append(len(read(plan, ids)[2]))
    assert counts
    assert set(counts) <= ({1} if mode == "required" else {0, 1})


@pytest.mark.parametrize("name", [*TEMPLATES, "sentencepiece"])
def test_with_a_named_function_there_is_exactly_one_call_of_it(name: str, walkers: dict[str, Walker]) -> None:
    walker, ended = walkers[name], 0
    choice = ToolChoice(mode="function", name="get_weather")
    plan = plan_of(walker, tools=tuple(TOOLS), tool_choice=choice)
    assert plan.constraint is not None
    for seed in range(10):
        ids = walker.walk(plan.constraint, seed=seed, wanted=wanted(walker))
        if ids is not None:
            _, content, calls = read(plan, ids)
            assert content == ""
            assert [call for call, _ in calls] == ["get_weather"]
            check_calls(calls)
            ended += 1
    assert ended >= 5


@pytest.mark.parametrize("name", [*TEMPLATES, "sentencepiece"])
def test_with_auto_text_is_free_and_calls_are_valid_once_begun(name: str, walkers: dict[str, Walker]) -> None:
    walker = walkers[name]
    plan = plan_of(walker, tools=tuple(TOOLS))
    assert plan.constraint is not None
    opening = walker.codec.tool_format.syntax.opening
    texts = calls_seen = 0
    for seed in range(60):
        ids = walker.walk(plan.constraint, seed=seed, wanted=wanted(walker))
        if ids is None:
            continue
        _, content, calls = read(plan, ids)
        assert opening not in content
        check_calls(calls)
        texts += bool(content)
        calls_seen += bool(calls)
    assert texts
    if walker.codec.tool_format.marker_ids or walker.codec.tool_format.syntax.bare:
        assert calls_seen


def accepts(walker: Walker, constraint: Constraint, text: str, *, special: bool) -> bool:
    """Whether the whole text may be the answer; `special`: marks are written as their tokens."""
    tokens = (
        walker.codec.encode(text, add_special_tokens=False)
        if special
        else walker.tokenizer.tokenize_str(text)
    )
    matcher = LLMatcher(walker.tokenizer, LLMatcher.grammar_from_lark(constraint.value), log_level=0)
    return all(matcher.consume_token(token) for token in tokens) and matcher.is_accepting()


W = '{"city": "Paris", "days": 3}'


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("hermes", f'<tool_call>\n{{"name": "get_weather", "arguments": {W}}}\n</tool_call>'),
        ("hermes", f'Well <tool_call>\n{{"name": "get_weather", "arguments": {W}}}\n</tool_call>'),
        ("hermes", '<think>\nHm.\n</think>\n\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'),
        ("hermes", "<think>\nHm {\"a\": 1}\n</think>\n\nParis."),
        ("hermes", "2 < 3 and <tool"),
        ("hermes", ""),
        ("llama", f'{{"name": "get_weather", "parameters": {W}}}'),
        ("llama", f'<|python_tag|>{{"name": "get_weather", "parameters": {W}}}; {{"name": "now", "parameters": {{}}}}'),
        ("llama", "Let me see {x}."),
        ("mistral", f'[TOOL_CALLS][{{"name": "get_weather", "arguments": {W}}}, {{"name": "now", "arguments": {{}}}}]'),
        ("mistral named", f"[TOOL_CALLS]get_weather[ARGS]{W}"),
        ("phi", f'<|tool_call|>[{{"name": "get_weather", "arguments": {W}}}]<|/tool_call|>'),
        ("default", f'<tool_call>\n{{"name": "get_weather", "arguments": {W}}}\n</tool_call>'),
    ],
)  # fmt: skip
def test_what_the_family_writes_is_possible_under_auto(
    name: str, answer: str, walkers: dict[str, Walker]
) -> None:
    plan = plan_of(walkers[name], tools=tuple(TOOLS))
    assert plan.constraint is not None
    assert accepts(walkers[name], plan.constraint, answer, special=True)


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("hermes", '<tool_call>\n{"name": "nobody", "arguments": {}}\n</tool_call>'),
        ("hermes", '<tool_call>\n{"name": "get_weather", "arguments": {"city": 3}}\n</tool_call>'),
        ("hermes", "<tool_call>\nwell"),
        ("llama", '{"name": "get_weather", "parameters": {}}'),
        ("llama", '{"some": "json"}'),
        ("mistral", '[TOOL_CALLS][{"name": "get_weather", "arguments": {}}]'),
        ("default", "text <tool_call>\nwell"),
    ],
)
def test_a_call_that_is_not_valid_is_impossible_under_auto(
    name: str, answer: str, special: bool, walkers: dict[str, Walker]
) -> None:
    plan = plan_of(walkers[name], tools=tuple(TOOLS))
    assert plan.constraint is not None
    assert not accepts(walkers[name], plan.constraint, answer, special=special)


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["x/y", "ü"]}}, "required": ["a", "b"], "additionalProperties": False}  # fmt: skip


@pytest.mark.parametrize("name", ["hermes", "llama", "default"])
def test_a_response_format_holds_after_a_thought_where_the_model_thinks(
    name: str, walkers: dict[str, Walker]
) -> None:
    walker, ended = walkers[name], 0
    plan = plan_of(walker, constraint=Constraint(kind="json_schema", value=json.dumps(SCHEMA)))
    assert plan.constraint is not None
    for seed in range(12):
        ids = walker.walk(plan.constraint, seed=seed, wanted=wanted(walker))
        if ids is not None:
            jsonschema.validate(json.loads(read(plan, ids)[1]), SCHEMA)
            ended += 1
    assert ended


@pytest.mark.parametrize("name", ["hermes", "mistral", "default"])
def test_with_tools_and_a_response_format_the_answer_is_a_call_or_matches_it(
    name: str, walkers: dict[str, Walker]
) -> None:
    walker, kinds = walkers[name], set()
    plan = plan_of(
        walker, tools=tuple(TOOLS), constraint=Constraint(kind="json_schema", value=json.dumps(SCHEMA))
    )
    assert plan.constraint is not None
    for seed in range(40):
        ids = walker.walk(plan.constraint, seed=seed, wanted=wanted(walker))
        if ids is None:
            continue
        _, content, calls = read(plan, ids)
        check_calls(calls)
        if not calls:
            jsonschema.validate(json.loads(content), SCHEMA)
        kinds.add(bool(calls))
    assert kinds == {True, False}


def test_json_object_and_regex_reach_the_worker_in_its_terms(walkers: dict[str, Walker]) -> None:
    bytes_only = TextCodec.for_bytes()
    found = bytes_only.response_constraint(Constraint(kind="json_object"))
    assert found.kind == "json_schema"
    assert json.loads(found.value)["type"] == "object"
    regex = Constraint(kind="regex", value="[a-z]/[0-9]\n?")
    assert bytes_only.response_constraint(regex) == regex
    plan = plan_of(walkers["hermes"], constraint=regex)
    assert plan.constraint is not None
    assert plan.constraint.kind == "lark"
    assert accepts(walkers["hermes"], plan.constraint, "a/1\n", special=False)
    assert not accepts(walkers["hermes"], plan.constraint, "a1", special=False)
