from __future__ import annotations

import resource
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from factories.chat_templates import ALL, CHATML, MISTRAL
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from inferloom.errors import InvalidRequest, LoadFailed
from inferloom.text import chat_template
from inferloom.text.chat_template import ChatTemplate
from inferloom.text.codec import TextCodec
from inferloom.text.messages import message_dicts, tool_dict
from inferloom.types import ChatMessage, FunctionCall, Tool, ToolCall

SPECIAL = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
WEATHER = Tool(
    name="get_weather",
    description="Weather of a city — today's",
    parameters={"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)
PLAIN = [ChatMessage(role="user", content='What is 2 < 3 & "so"? Ça va?')]
LONG = [
    ChatMessage(role="system", content="Be brief."),
    ChatMessage(role="user", content=" Hi "),
    ChatMessage(role="assistant", content="Hello.", reasoning_content="A greeting."),
    ChatMessage(role="user", content="And the weather in Paris?"),
]
CALLED = [
    *LONG,
    ChatMessage(
        role="assistant",
        tool_calls=(ToolCall(id="abcdefgh1", function=FunctionCall("get_weather", '{"city": "Paris"}')),),
    ),
    ChatMessage(role="tool", content='{"celsius": 21}', tool_call_id="abcdefgh1"),
]


def codec_of(tokenizer: Tokenizer, template: str) -> TextCodec:
    return TextCodec(tokenizer, templates={"default": template}, special_tokens=SPECIAL)


def render(template: str, **variables: Any) -> str:
    return ChatTemplate(template).render([], tools=None, variables=variables)


@pytest.mark.parametrize("messages", [PLAIN, LONG, CALLED], ids=["plain", "long", "called"])
@pytest.mark.parametrize("tools", [(), (WEATHER, Tool(name="now"))], ids=["no tools", "tools"])
@pytest.mark.parametrize("name", ["llama", "qwen", "mistral", "chatml", "training"])
def test_a_chat_renders_as_transformers_renders_it(
    name: str, tools: tuple[Tool, ...], messages: list[ChatMessage], byte_bpe: Tokenizer
) -> None:
    if name in ("chatml", "training") and (tools or messages is CALLED):
        tools, messages = (), LONG  # they know no tools: those go into the text, see the tests of tools
    reference = PreTrainedTokenizerFast(tokenizer_object=byte_bpe, chat_template=ALL[name], **SPECIAL)
    kwargs = {"enable_thinking": False, "date_string": "1 Jan 2030"}
    expected = reference.apply_chat_template(
        message_dicts(messages, developer=False),
        tools=[tool_dict(tool) for tool in tools] or None,
        add_generation_prompt=True,
        tokenize=False,
        **kwargs,
    )
    codec = codec_of(byte_bpe, ALL[name])
    text = codec.render_chat(messages, tools=tools, kwargs=kwargs)
    assert text == expected
    assert codec.encode_prompt(text) == reference(expected, add_special_tokens=False)["input_ids"]


def test_the_date_is_todays_where_the_template_asks_for_it() -> None:
    assert render("{{ strftime_now('%Y-%m') }}") == time.strftime("%Y-%m")


def test_variables_of_the_request_reach_the_template(byte_bpe: Tokenizer) -> None:
    codec = codec_of(byte_bpe, "{{ mood }}{% if not add_generation_prompt %} closed{% endif %}")
    assert codec.render_chat(PLAIN, kwargs={"mood": "calm", "add_generation_prompt": False}) == "calm closed"
    with pytest.raises(InvalidRequest, match="messages"):
        codec.render_chat(PLAIN, kwargs={"messages": []})


def test_developer_becomes_system_where_the_template_does_not_know_it(byte_bpe: Tokenizer) -> None:
    messages = [ChatMessage(role="developer", content="Be brief."), *PLAIN]
    assert "<|im_start|>system\nBe brief." in codec_of(byte_bpe, CHATML).render_chat(messages)
    knows = "{% if messages[0].role == 'developer' %}known{% endif %}"
    assert codec_of(byte_bpe, knows).render_chat(messages) == "known"


def test_without_a_template_the_refusal_names_the_setting(byte_bpe: Tokenizer) -> None:
    codec = TextCodec(byte_bpe)
    assert not codec.has_chat_template
    with pytest.raises(InvalidRequest, match=r"chat_template="):
        codec.render_chat(PLAIN)


def test_what_the_template_complains_of_is_told_to_the_client(byte_bpe: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match="roles must alternate") as caught:
        codec_of(byte_bpe, MISTRAL).render_chat([*PLAIN, *PLAIN])
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "template", ["{{ messages[3].content }}", "{{ 1 / 0 }}", "{{ 'a' + 1 }}", "{{ none.x.y }}"]
)
def test_a_template_that_fails_is_a_sentence_and_not_a_traceback(template: str) -> None:
    with pytest.raises(InvalidRequest, match="chat template"):
        render(template)


def test_a_text_that_is_no_template_cannot_be_loaded() -> None:
    with pytest.raises(LoadFailed, match=r"cannot be parsed.*line 2"):
        ChatTemplate("fine\n{% if %}")


HOSTILE = {
    "a long range": "{% for i in range(10**9) %}x{% endfor %}",
    "a long string": "{{ 'a' * 10**10 }}",
    "a long string, the other way round": "{{ 10**10 * 'a' }}",
    "a long list": "{{ ([0] * 10**10) | length }}",
    "a huge power": "{{ 10 ** (10 ** 9) }}",
    "a wide format": "{{ '%9999999999d' % 1 }}",
    "a wide field": "{{ 'a'.ljust(10**11) }}",
    "a centred field": "{{ 'a' | center(10**11) }}",
    "a long join": "{% set s = 'aaaaaaaa' * 1000000 %}{{ ([s] * 10000) | join }}",
    "a long join by the method": "{% set s = 'aaaaaaaa' * 1000000 %}{{ s.join(['a'] * 10000) }}",
    "a long replacement": "{% set s = 'a' * 1000000 %}{{ s.replace('a', s) }}",
    "a wide indent": "{{ [1] | tojson(indent=10**9) }}",
    "wide tabs": "{{ '\\t'.expandtabs(10**10) }}",
    "doubling": "{% set n = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "endless output": "{% for i in range(99999) %}{% for j in range(99999) %}{{ 'aaaaaaaaaaaaaaaaaaaaaaaaa' }}{% endfor %}{% endfor %}",
    "classes": "{{ ''.__class__.__mro__ }}",
    "the frame of a function": "{{ raise_exception.__globals__['json'] }}",
    "private names in a namespace": "{% set n = namespace() %}{% set n._x = 1 %}",
    "changing the messages": "{{ messages.append(1) }}",
}


def in_a_thread(work: Callable[[], object]) -> BaseException | None:
    caught: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except InvalidRequest as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    return caught[0] if caught else None


@pytest.mark.parametrize("template", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_template_is_refused_and_the_process_is_well(
    template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_template, "RENDER_SECONDS", 0.5)
    with pytest.raises(InvalidRequest, match="refused"):
        render(template)
    assert render("{{ 'fine' }}") == "fine"


@pytest.mark.parametrize("template", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_template_is_refused_outside_the_main_thread_too(
    template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_template, "RENDER_SECONDS", 0.5)
    assert "refused" in str(in_a_thread(lambda: render(template)))
    assert in_a_thread(lambda: render("{{ 'fine' }}")) is None


def test_operations_of_ordinary_size_are_left_alone() -> None:
    template = (
        "{{ 'ab' * 3 }} {{ 2 ** 10 }} {{ '%5.1f' % 2.25 }} {{ 'a'.ljust(4) }}| {{ 'x' | center(5) }}| {{ ', '.join(['a', 'b']) }} "
        "{{ ['a', 'b'] | join('-') }} {{ 'banana'.replace('a', 'o') }} {{ 'a\n b' | replace('\n', ';') }} {{ '{:>3}'.format(7) }} "
        "{{ [1, 2] | tojson(indent=2) }} {{ 'a\nb' | indent(2) }} {{ '\t'.expandtabs(4) }}| {{ [3, 1] | sort | first }}"
    )
    expected = "ababab 1024   2.2 a   |   x  | a, b a-b bonono a; b   7 [\n  1,\n  2\n] a\n  b     | 1"
    assert render(template) == expected


ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


def test_a_template_that_ran_out_of_time_is_refused_at_once_from_then_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chat_template, "RENDER_SECONDS", 0.1)
    template = ChatTemplate(ENDLESS)
    with pytest.raises(InvalidRequest, match=r"refused: it ran for more than 0.1 s.*chat_template="):
        template.render([], tools=None, variables={})
    monkeypatch.setattr(chat_template, "RENDER_SECONDS", 600.0)
    with pytest.raises(InvalidRequest, match=r"refused: it ran for more than 0\.1 s"):
        template.render([], tools=None, variables={})


def test_a_request_cannot_take_the_template_away_from_others(
    byte_bpe: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_template, "RENDER_SECONDS", 0.1)
    codec = codec_of(
        byte_bpe, "{% for i in range(size) %}{% for j in range(size) %}{% endfor %}{% endfor %}fine"
    )
    with pytest.raises(InvalidRequest, match="for this request: it ran"):
        codec.render_chat(PLAIN, kwargs={"size": 99999})
    assert codec.render_chat(PLAIN, kwargs={"size": 1}) == "fine"


def test_a_render_leaves_timer_handler_and_memory_limit_as_they_were() -> None:
    def settings() -> tuple[object, ...]:
        return signal.getsignal(signal.SIGALRM), resource.getrlimit(resource.RLIMIT_AS)

    def handler(_number: int, _frame: object) -> None:
        raise AssertionError("nobody set an alarm")

    timer, previous = signal.getitimer(signal.ITIMER_REAL)[0], signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 100.0)
    try:
        before = settings()
        render("{{ 1 }}")
        with pytest.raises(InvalidRequest):
            render(HOSTILE["doubling"])
        assert settings() == before
        assert 90 < signal.getitimer(signal.ITIMER_REAL)[0] <= 100
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        signal.setitimer(signal.ITIMER_REAL, timer)
