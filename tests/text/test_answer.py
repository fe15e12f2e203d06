from __future__ import annotations

from typing import Any

import pytest
from factories.chat_templates import MISTRAL, QWEN
from tokenizers import Tokenizer

from inferloom.errors import InvalidRequest
from inferloom.text.answer import AnswerPlan, AnswerReader
from inferloom.text.codec import TextCodec
from inferloom.types import ChatMessage, Constraint, ExecuteBatch, Tool, ToolChoice

NOW = Tool(name="now")
USER = (ChatMessage(role="user", content="What time is it?"),)


def plan_of(codec: TextCodec, **fields: Any) -> AnswerPlan:
    if not fields.keys() & {"text", "token_ids"}:
        fields.setdefault("messages", USER)
    return AnswerPlan(codec, ExecuteBatch(request_id="r", model="m", **fields))


def read(codec: TextCodec, reader: AnswerReader, answer: str) -> tuple[str, str, str]:
    """Reasoning, text and arguments of an answer whose tokens come one by one, up to a stop."""
    reasoning = text = arguments = ""
    for token in codec.encode(answer, add_special_tokens=False):
        piece = reader.push([token])
        reasoning, text = reasoning + piece.reasoning, text + piece.text
        arguments += "".join(delta.arguments for delta in piece.tool_calls)
        if piece.stopped:
            return reasoning, text, arguments
    piece = reader.flush()
    arguments += "".join(delta.arguments for delta in piece.tool_calls)
    return reasoning + piece.reasoning, text + piece.text, arguments


@pytest.fixture
def qwen(byte_bpe: Tokenizer) -> TextCodec:
    return TextCodec(byte_bpe, templates={"default": QWEN})


def test_a_plain_answer_is_its_text() -> None:
    codec = TextCodec.for_bytes()
    plan = plan_of(codec)
    assert plan.constraint is None
    assert codec.decode(plan.token_ids, skip_special_tokens=False) == plan.prompt
    assert read(codec, plan.reader(), "Grüße 🙂 <|im_end|>") == ("", "Grüße 🙂 ", "")


def test_a_thought_text_and_a_call_are_told_apart(qwen: TextCodec) -> None:
    reader = plan_of(qwen, tools=(NOW,)).reader()
    answer = '<think>\nthe clock\n</think>\n\nOne moment.\n<tool_call>\n{"name": "now", "arguments": {"a": 1}}\n</tool_call>'
    assert read(qwen, reader, answer) == ("the clock", "One moment.\n", '{"a": 1}')
    assert reader.called


def test_marks_that_are_special_tokens_are_seen_by_the_parser_and_not_by_the_client(
    byte_bpe: Tokenizer,
) -> None:
    special = {"bos_token": "", "eos_token": ""}
    codec = TextCodec(byte_bpe, templates={"default": MISTRAL}, special_tokens=special)
    answer = '[TOOL_CALLS][{"name": "now", "arguments": {}}]'
    assert read(codec, plan_of(codec, tools=(NOW,)).reader(), answer) == ("", "", "{}")
    assert "[TOOL_CALLS]" not in read(codec, plan_of(codec).reader(), answer)[1]


def test_a_stop_string_counts_in_the_answer_and_not_in_the_thought(qwen: TextCodec) -> None:
    reader = plan_of(qwen, stop=("END",)).reader()
    assert read(qwen, reader, "<think>no END here</think>yes END no") == ("no END here", "yes ", "")
    assert reader.stop == "END"


def test_with_choice_none_the_tools_are_not_shown_and_not_looked_for(qwen: TextCodec) -> None:
    plan = plan_of(qwen, tools=(NOW,), tool_choice=ToolChoice(mode="none"))
    assert plan.prompt is not None
    assert "now" not in plan.prompt
    assert plan.constraint is None
    text = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    assert read(qwen, plan.reader(), text) == ("", text, "")


def test_a_prompt_that_opens_the_thought_is_followed_by_reasoning(byte_bpe: Tokenizer) -> None:
    codec = TextCodec(byte_bpe, templates={"default": "{{ messages[0].content }}<think>\n"})
    plan = plan_of(codec)
    assert read(codec, plan.reader(), "hm</think>\nyes") == ("hm", "yes", "")


def test_a_completion_is_text_whatever_is_in_it(qwen: TextCodec) -> None:
    plan = plan_of(qwen, text="Once")
    assert plan.token_ids == qwen.encode("Once", add_special_tokens=True)
    assert read(qwen, plan.reader(), "<think>a</think>b")[1] == "<think>a</think>b"


def test_token_ids_are_taken_as_they_are(qwen: TextCodec) -> None:
    plan = plan_of(qwen, token_ids=[3, 1, 2])
    assert plan.token_ids == [3, 1, 2]
    assert plan.prompt is None


def test_an_empty_prompt_is_the_bos_where_the_model_has_one(byte_bpe: Tokenizer) -> None:
    codec = TextCodec(byte_bpe, special_tokens={"bos_token": "<|im_start|>"})
    assert plan_of(codec, text="").token_ids == [codec.bos_token_id]
    assert plan_of(codec, token_ids=[]).token_ids == [codec.bos_token_id]
    with pytest.raises(InvalidRequest, match="prompt is empty") as caught:
        plan_of(TextCodec(byte_bpe), text="")
    assert caught.value.param == "prompt"


def test_every_choice_has_its_own_reader(qwen: TextCodec) -> None:
    plan = plan_of(qwen, stop=("x",))
    first, second = plan.reader(), plan.reader()
    assert read(qwen, first, "ax") == ("", "a", "")
    assert read(qwen, second, "b") == ("", "b", "")


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        (
            {"tools": (NOW, Tool(name="b", parameters={"properties": {"x": {"not": {}}}}))},
            "tools[1].function.parameters",
            r"tools\[1\]\.function\.parameters\.properties\.x\.not: the keyword 'not'",
        ),
        (
            {"tools": (Tool(name="b", parameters={"type": "string"}),)},
            "tools[0].function.parameters",
            "are an object",
        ),
        (
            {"constraint": Constraint(kind="json_schema", value='{"if": {}}')},
            "response_format.json_schema.schema",
            r"response_format\.json_schema\.schema\.if: the keyword 'if'",
        ),
        (
            {"constraint": Constraint(kind="json_schema", value="{")},
            "response_format.json_schema.schema",
            "is no JSON",
        ),
    ],
)
def test_schemas_that_cannot_be_enforced_are_refused_before_anything_runs(
    qwen: TextCodec, fields: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        plan_of(qwen, **fields)
    assert caught.value.param == param
