"""Keys and values in int8, through a whole server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import torch
from factories.checkpoints import make_checkpoint
from factories.server import Served, serving

from inferloom.kernels.native import library

NATIVE = library.available()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`plain`, `int8` with the same weights, and `foreign`, which has no int8 pages."""
    folder = tmp_path_factory.mktemp("kv")
    make_checkpoint(folder / "tiny", "llama", dtype=torch.bfloat16)
    make_checkpoint(folder / "foreign", "opt", dtype=torch.bfloat16)
    flags = ["-m", f"{folder}/tiny,name=plain,threads=1"]
    for source, name in (("tiny", "int8"), ("foreign", "foreign")):
        flags += ["-m", f"{folder}/{source},name={name},threads=1,kv_dtype=int8,lazy=true"]
    with serving(*flags, environment={"INFERLOOM_CACHE": str(folder / "cache")}) as server:
        yield server


def complete(served: Served, model: str, prompt: str) -> httpx.Response:
    body = {"model": model, "prompt": prompt, "max_tokens": 24, "ignore_eos": True, "temperature": 0}
    return httpx.post(f"{served.url}/v1/completions", json=body, timeout=100)


def details(served: Served, model: str) -> dict[str, Any]:
    answer: dict[str, Any] = httpx.get(f"{served.url}/v1/models/{model}").json()
    return answer


@pytest.mark.parametrize("model", ["int8"] if NATIVE else [])
def test_a_model_says_what_its_pages_are_and_takes_half_the_memory(served: Served, model: str) -> None:
    assert complete(served, model, "The quick").status_code == 200
    plain, int8 = details(served, "plain"), details(served, model)
    assert (plain["kv_dtype"], int8["kv_dtype"]) == ("bfloat16", "int8")
    assert 0.5 < int8["kv_bytes"] / plain["kv_bytes"] < 0.8  # heads of 16 elements: scales are a quarter


@pytest.mark.parametrize("model", ["int8"] if NATIVE else [])
def test_a_known_beginning_and_drafts_change_no_answer(served: Served, model: str) -> None:
    prompt = "What is the capital of France? The capital of France is Paris. " * 4
    first = complete(served, model, prompt).raise_for_status().json()
    again = complete(served, model, prompt).raise_for_status().json()
    assert again["choices"] == first["choices"]
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


def test_a_model_whose_executor_has_no_such_pages_says_why(served: Served) -> None:
    answer = complete(served, "foreign", "x")
    assert answer.status_code >= 400
    message = answer.json()["error"]["message"]
    assert "kv_dtype 'int8' for foreign is not supported: only the native step reads int8 pages" in message
    assert complete(served, "plain", "x").status_code == 200
