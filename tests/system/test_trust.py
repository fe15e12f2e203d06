"""Checkpoints are data that nobody vouched for, and servers that know nothing of each other share a home."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
from factories import gguf
from factories.checkpoints import make_checkpoint
from factories.server import Served, serving


def ask(served: Served, model: str) -> httpx.Response:
    body = {"model": model, "messages": "Hello", "max_tokens": 4, "temperature": 0}
    return httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=60)


def test_code_that_comes_with_a_checkpoint_does_not_run(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "hostile", "llama")
    folder, trace = Path(checkpoint.folder), tmp_path / "it-ran"
    (folder / "modeling_hostile.py").write_text(f"open({str(trace)!r}, 'w').close()\n")
    for name in ("config.json", "tokenizer_config.json"):
        settings = json.loads((folder / name).read_text())
        auto = {
            "AutoConfig": "modeling_hostile.Config",
            "AutoModelForCausalLM": "modeling_hostile.Model",
            "AutoTokenizer": ["modeling_hostile.Tokenizer", None],
        }
        (folder / name).write_text(json.dumps(settings | {"auto_map": auto}))
    with serving("-m", f"{folder},max_batch_size=4,threads=1") as served:
        assert ask(served, "hostile").status_code == 200
    assert not trace.exists()


def test_a_hostile_template_is_refused_and_the_other_models_answer() -> None:
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    hostile = f",name=hostile,driver=dummy,chat_template={endless}"
    with (
        serving("-m", hostile, "-m", ",name=good,driver=dummy") as served,
        ThreadPoolExecutor(1) as beside,
    ):
        waiting = beside.submit(ask, served, "hostile")
        assert ask(served, "good").status_code == 200
        refused = waiting.result()
        assert refused.status_code == 400
        assert "template" in refused.json()["error"]["message"]
        assert ask(served, "hostile").status_code == 400
        assert ask(served, "good").status_code == 200


def test_servers_that_share_a_home_and_convert_the_same_file_do_not_disturb_each_other(
    tmp_path: Path,
) -> None:
    path = gguf.write(tmp_path / "shared.gguf")
    environment = {"INFERLOOM_HOME": str(tmp_path / "home"), "INFERLOOM_CACHE": str(tmp_path / "cache")}
    flags = ("-m", f"{path},name=shared,activation_dtype=float32,max_batch_size=4,threads=1")
    body = {"model": "shared", "prompt": "The", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    with ExitStack() as stack:
        servers = [
            stack.enter_context(serving(*flags, environment=environment, ready=False)) for _ in range(2)
        ]
        for served in servers:
            served.wait_for("shared ready in ", seconds=90)
        texts = [
            httpx.post(f"{served.url}/v1/completions", json=body, timeout=60).json()["choices"][0]["text"]
            for served in servers
        ]
    assert texts[0] == texts[1] != ""
