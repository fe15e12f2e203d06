from __future__ import annotations

import json

import pytest
from factories.chat_templates import CHATML, LLAMA, MISTRAL, QWEN
from tokenizers import Tokenizer

from inferloom.errors import InvalidRequest, Unsupported
from inferloom.text.codec import TextCodec
from inferloom.text.tools import ToolFormat
from inferloom.types import ChatMessage, Constraint, FunctionCall, Tool, ToolCall, ToolChoice

NOW = Tool(name="now", description="The time")
WEATHER = Tool(name="get_weather", parameters={"type": "object", "properties": {"city": {"type": "string"}}})
USER = ChatMessage(role="user", content="What time is it?")
CALL = ToolCall(id="call_0123456789abcdef01234567", function=FunctionCall("now", '{"zone": "CET"}'))
HISTORY = [
    USER,
    ChatMessage(role="assistant", content="Let me look.", tool_calls=(CALL,)),
    ChatMessage(role="tool", content="12:00", tool_call_id=CALL.id),
]


@pytest.mark.parametrize(
    ("template", "name", "native"),
    [
        (QWEN, "hermes", True),
        (LLAMA, "llama3-json", True),
        (MISTRAL, "mistral-json", True),
        (MISTRAL + "{{ '[ARGS]' }}", "mistral", True),
        ("{{ tools }}<|tool_call|>", "phi", True),
        (CHATML, "default", False),
        ("{{ tools }} <tool_call><function=name><parameter=a>", "default", False),
        ("{{ xml_tools }} <tool_call>", "default", False),
        ("{{ tools }} in a way nobody knows", "default", False),
        ("", "default", False),
    ],
)
def test_the_format_is_found_from_the_template(
    template: str, name: str, native: bool, byte_bpe: Tokenizer
) -> None:
    found = ToolFormat.detect(template, byte_bpe)
    assert (found.name, found.native) == (name, native)


def test_a_template_that_knows_no_tools_gets_them_in_the_system_message() -> None:
    codec = TextCodec.for_bytes()
    alone = codec.render_chat([USER], tools=[NOW, WEATHER])
    assert alone.startswith("<|im_start|>system\nYou can call the functions")
    assert '{"type": "function", "function": {"name": "now", "description": "The time"' in alone
    assert "<tool_call>" in alone
    beside = codec.render_chat([ChatMessage(role="system", content="Be brief."), USER], tools=[NOW])
    assert beside.startswith("<|im_start|>system\nBe brief.\n\nYou can call the functions")
    assert beside.count("<|im_start|>system") == 1
    assert "functions" not in codec.render_chat([USER])


def test_calls_and_results_in_the_history_are_written_out_for_such_a_template() -> None:
    text = TextCodec.for_bytes().render_chat(HISTORY)
    assert (
        'Let me look.\n<tool_call>\n{"name": "now", "arguments": {"zone": "CET"}}\n</tool_call><|im_end|>'
        in text
    )
    assert "<|im_start|>user\n<tool_response>\n12:00\n</tool_response><|im_end|>" in text


def test_mistrals_templates_get_call_ids_of_nine_characters(byte_bpe: Tokenizer) -> None:
    codec = TextCodec(
        byte_bpe, templates={"default": MISTRAL}, special_tokens={"bos_token": "", "eos_token": ""}
    )
    text = codec.render_chat(HISTORY, tools=[NOW])
    short = text.partition('"call_id": "')[2][:9]
    assert short.isalnum()
    assert f', "id": "{short}"}}]' in text


def test_the_tokens_of_the_marks_are_known(byte_bpe: Tokenizer) -> None:
    found = ToolFormat.detect(QWEN, byte_bpe)
    assert found.marker_ids >= {byte_bpe.token_to_id("<tool_call>"), byte_bpe.token_to_id("</tool_call>")}


def test_no_tools_and_no_choice_mean_no_constraint(byte_bpe: Tokenizer) -> None:
    found = ToolFormat.detect(QWEN, byte_bpe)
    assert found.constraint([NOW], ToolChoice(mode="none")) is None
    assert found.constraint([], ToolChoice(mode="auto")) is None


def test_a_choice_that_cannot_be_met_is_refused(byte_bpe: Tokenizer) -> None:
    found = ToolFormat.detect(QWEN, byte_bpe)
    for tools, choice, words in [
        ([], ToolChoice(mode="required"), "there are no tools"),
        ([NOW], ToolChoice(mode="function", name="later"), "'later', which is not among the tools"),
    ]:
        with pytest.raises(InvalidRequest, match=words) as caught:
            found.constraint(tools, choice)
        assert caught.value.param == "tool_choice"
    with pytest.raises(Unsupported, match="grammar"):
        found.constraint([NOW], ToolChoice(mode="auto"), response=Constraint(kind="lark", value="start: /a/"))


def test_arguments_that_are_no_json_object_reach_the_template_as_they_are(byte_bpe: Tokenizer) -> None:
    codec = TextCodec(byte_bpe, templates={"default": QWEN})
    for arguments, shown in (("[1]", "[1]"), ("oops", "oops"), ("", "{}"), ('{"a":1}', '{"a": 1}')):
        call = ToolCall(id="x", function=FunctionCall("now", arguments))
        text = codec.render_chat([USER, ChatMessage(role="assistant", tool_calls=(call,))])
        assert f'{{"name": "now", "arguments": {shown}}}' in text


def test_a_tool_reaches_the_template_as_openai_writes_it(byte_bpe: Tokenizer) -> None:
    codec = TextCodec(byte_bpe, templates={"default": "<tool_call>{{ tools | tojson }}"})
    shown = json.loads(codec.render_chat([USER], tools=[NOW, WEATHER]).removeprefix("<tool_call>"))
    assert [tool["function"]["name"] for tool in shown] == ["now", "get_weather"]
    assert shown[0] == {
        "type": "function",
        "function": {
            "name": "now",
            "description": "The time",
            "parameters": {"type": "object", "properties": {}},
        },
    }
