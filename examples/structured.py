"""An answer that must match a JSON Schema, and a tool that must be called: both hold whatever the model would like."""

import json
import os

from openai import OpenAI

client = OpenAI(base_url=os.environ.get("INFERLOOM_URL", "http://127.0.0.1:8080") + "/v1", api_key="none")

schema = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "country": {"enum": ["France", "Italy"]}},
    "required": ["city", "country"],
    "additionalProperties": False,
}
answer = client.chat.completions.create(
    model="smollm2",
    messages=[{"role": "user", "content": "What is the capital of France?"}],
    response_format={"type": "json_schema", "json_schema": {"name": "capital", "schema": schema}},
    temperature=0,
    max_tokens=60,
)
print(json.loads(answer.choices[0].message.content))

weather = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}},
            "required": ["city"],
        },
    },
}
called = client.chat.completions.create(
    model="smollm2",
    messages=[{"role": "user", "content": "What is the weather in Rome?"}],
    tools=[weather],
    tool_choice="required",
    temperature=0,
    max_tokens=60,
)
call = called.choices[0].message.tool_calls[0].function
print(call.name, json.loads(call.arguments))
