"""Stream an answer token by token.

inferloom serve -m smollm2 -m minilm     # in another terminal
python examples/stream.py
"""

import os

from openai import OpenAI

client = OpenAI(base_url=os.environ.get("INFERLOOM_URL", "http://127.0.0.1:8080") + "/v1", api_key="none")
stream = client.chat.completions.create(
    model="smollm2",
    messages=[{"role": "user", "content": "What is the capital of France?"}],
    temperature=0,
    stream=True,
    stream_options={"include_usage": True},
)
for chunk in stream:
    for choice in chunk.choices:
        print(choice.delta.content or "", end="", flush=True)
    if chunk.usage is not None:
        print(f"\n({chunk.usage.prompt_tokens} tokens in, {chunk.usage.completion_tokens} out)")
