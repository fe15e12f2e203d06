from __future__ import annotations

import pytest

from inferloom.runners.run import Run
from inferloom.text.answer import AnswerPlan
from inferloom.text.codec import TextCodec
from inferloom.types import ChatMessage, ExecuteBatch, FinishReason, Tool
from inferloom.worker.messages.replies import SequenceStep

CALL = 'Hm. <tool_call>{"name": "now", "arguments": {"zone": "utc"}}</tool_call>'


@pytest.mark.parametrize(
    ("length", "finish", "told", "arguments"),
    [
        (CALL.index("now"), "length", "length", None),
        (CALL.index('"arguments') + 3, "length", "length", None),
        (CALL.index("zone"), "length", "length", '{"'),
        (len(CALL), "stop", "tool_calls", '{"zone": "utc"}'),
    ],
)
async def test_a_call_that_the_limit_cuts_before_its_arguments_leaves_nothing_of_it(
    length: int, finish: FinishReason, told: FinishReason, arguments: str | None
) -> None:
    codec = TextCodec.for_bytes()
    user = (ChatMessage(role="user", content="What time is it?"),)
    plan = AnswerPlan(
        codec, ExecuteBatch(request_id="r", model="m", messages=user, tools=(Tool(name="now"),))
    )
    run = Run(
        1,
        plan,
        codec,
        n=1,
        echo=False,
        logprobs=False,
        on_cancel=lambda run: None,
        stop_choice=lambda number, choice: None,
    )
    tokens = codec.encode(CALL[:length], add_special_tokens=False)
    for token in tokens:
        run.advance(SequenceStep(id=1, choice=0, tokens=[token]))
    assert run.advance(SequenceStep(id=1, choice=0, tokens=[], finish=finish))
    chunks = [chunk async for chunk in run.handle]
    assert chunks[-1].finish_reason == told
    assert "".join(chunk.text for chunk in chunks) == "Hm. "
    calls = [delta for chunk in chunks for delta in chunk.tool_calls]
    assert [delta.name for delta in calls if delta.id is not None] == ([] if arguments is None else ["now"])
    assert "".join(delta.arguments for delta in calls) == (arguments or "")
