"""The serving gateway never has torch in it, whatever it was asked to do."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

from factories.server import Served, serving

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}},
            "required": ["city"],
        },
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer"}},
    "required": ["n"],
    "additionalProperties": False,
}


def post(server: Served, path: str, payload: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"{server.url}{path}", json.dumps(payload).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=100) as response:
        return json.load(response)


def maps(server: Served) -> str:
    return Path(f"/proc/{server.process.pid}/maps").read_text()


def test_the_gateway_maps_no_torch_after_tools_schemas_unload_and_reload() -> None:
    chat = {
        "model": "smollm2",
        "messages": [{"role": "user", "content": "The weather in Paris?"}],
        "max_tokens": 24,
    }
    with serving("-m", "smollm2", "-m", "minilm", "-m", ",name=dummy,driver=dummy") as server:
        server.wait_for("smollm2 ready")
        schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
        post(server, "/v1/chat/completions", chat | {"tools": [WEATHER], "tool_choice": "required"})
        post(server, "/v1/chat/completions", chat | {"response_format": schema})
        post(server, "/v1/chat/completions", chat | {"model": "dummy"})
        post(server, "/v1/embeddings", {"model": "minilm", "input": "sea"})
        post(server, "/v1/models/unload", {"model_id": "smollm2"})
        post(server, "/v1/models/reload", {"model_id": "smollm2"})
        post(server, "/v1/chat/completions", chat)
        found = maps(server)
    assert "libtorch" not in found
    assert "transformers" not in found
    assert "libc.so" in found


def test_what_only_a_loaded_model_needs_is_not_imported_before_the_gateway_listens() -> None:
    code = (
        "import sys, inferloom.gateway.server, inferloom.gateway.app, inferloom.catalog.catalog\n"
        "print(*sorted({'tokenizers', 'jinja2', 'numpy', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
