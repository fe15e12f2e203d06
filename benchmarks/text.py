"""What the gateway spends on text: detokenizing, templates, encoding, stop strings, tool calls.

    python benchmarks/text.py [FOLDER]

FOLDER holds a tokenizer (and perhaps a chat template); without it the built-in byte tokenizer is measured. Each
figure is the best of several rounds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from inferloom.formats.checkpoint import Checkpoint
from inferloom.text.answer import AnswerPlan
from inferloom.text.codec import TextCodec
from inferloom.types import ChatMessage, Constraint, ExecuteBatch, Tool

TEXT = (
    "The capital of France is Paris. Its population is about 2.1 million — Grüße, 日本語, 🙂. "
    "def add(a, b): return a + b\n"
) * 40
CHAT = (
    ChatMessage(role="system", content="You are a concise assistant. Answer in one short sentence."),
    ChatMessage(role="user", content="What is the capital of France?"),
)
TOOL = Tool(name="get_weather", parameters={"type": "object", "properties": {"city": {"type": "string"}}})
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "' + "Paris " * 400 + '"}}\n</tool_call>'


def best(work: Callable[[], object], *, rounds: int = 7, repeat: int = 1) -> float:
    """Seconds of one call of `work`, in the fastest of the rounds."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        for _ in range(repeat):
            work()
        times.append((time.perf_counter() - started) / repeat)
    return min(times)


def main() -> None:
    started = time.perf_counter()
    if len(sys.argv) > 1:
        codec = TextCodec.load(
            Checkpoint(source=sys.argv[1], name="bench", folder=sys.argv[1], weights=(), format="safetensors")
        )
    else:
        codec = TextCodec.for_bytes()
    print(f"load                          {(time.perf_counter() - started) * 1e3:9.1f} ms")
    ids = codec.encode(TEXT, add_special_tokens=False)

    def detokenize() -> None:
        push = codec.detokenizer().push
        for token in ids:
            push((token,))

    def decode_whole() -> None:
        codec.decode(ids)

    def answer(**fields: object) -> Callable[[], None]:
        batch = ExecuteBatch(request_id="r", model="m", messages=CHAT, **fields)  # type: ignore[arg-type]
        plan = AnswerPlan(codec, batch)

        def read() -> None:
            reader = plan.reader()
            for token in ids:
                reader.push((token,))
            reader.flush()

        return read

    call_ids = codec.encode(CALL, add_special_tokens=False)
    with_tools = AnswerPlan(codec, ExecuteBatch(request_id="r", model="m", messages=CHAT, tools=(TOOL,)))

    def read_call() -> None:
        reader = with_tools.reader()
        for token in call_ids:
            reader.push((token,))
        reader.flush()

    def per_token(work: Callable[[], object], count: int) -> str:
        return f"{best(work) / count * 1e9:9.0f} ns a token"

    print(f"detokenize, token by token    {per_token(detokenize, len(ids))}")
    print(f"decode the whole              {per_token(decode_whole, len(ids))}")
    print(f"answer: text alone            {per_token(answer(), len(ids))}")
    print(f"answer: two stop strings      {per_token(answer(stop=('User:', chr(10) * 3)), len(ids))}")
    print(f"answer: tools are offered     {per_token(answer(tools=(TOOL,)), len(ids))}")
    print(f"answer: a tool is called      {per_token(read_call, len(call_ids))}")
    prompt = codec.render_chat(CHAT)
    long_chat = (
        CHAT + tuple(ChatMessage(role=role, content="Hello there") for role in ("assistant", "user")) * 20
    )
    print(f"render a chat of 2 messages   {best(lambda: codec.render_chat(CHAT), repeat=200) * 1e6:9.1f} µs")
    print(
        f"render a chat of 42 messages  {best(lambda: codec.render_chat(long_chat), repeat=50) * 1e6:9.1f} µs"
    )
    print(
        f"encode that prompt of 2       {best(lambda: codec.encode_prompt(prompt), repeat=200) * 1e6:9.1f} µs"
    )
    print(
        f"encode {len(TEXT):5d} characters       {best(lambda: codec.encode_prompt(TEXT), repeat=5) * 1e6:9.1f} µs"
    )
    schema = Constraint(
        kind="json_schema", value='{"type": "object", "properties": {"a": {"type": "string"}}}'
    )
    grammar = best(lambda: codec.response_constraint(schema), repeat=200)
    print(f"grammar of a response format  {grammar * 1e6:9.1f} µs")


if __name__ == "__main__":
    main()
