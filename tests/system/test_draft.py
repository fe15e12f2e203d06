"""Two models in a configuration, one of which drafts for others, through HTTP: answers are those without drafts."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from factories.checkpoints import make_checkpoint
from factories.server import Served, serving

EXACT = "threads=1,activation_dtype=float32"
PROMPTS = (
    "The quick brown fox",
    "What is the capital of France? The capital of France is Paris. What is",
    "1 2 3 4 5 6 7 8 9 10 11 12 1 2 3 4 5 6",
    "{} [] : , {} [] : , user assistant system tool",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`large`, the smaller `small`, and `other`: another tokenizer, whose tokens have other numbers."""
    folder = tmp_path_factory.mktemp("drafting")
    make_checkpoint(folder / "large", "llama", layers=3, seed=1)
    make_checkpoint(folder / "small", "qwen2", layers=1, seed=2)
    make_checkpoint(folder / "other", "llama", layers=1, seed=3)
    path = folder / "other" / "tokenizer.json"
    tokenizer = msgspec.json.decode(path.read_bytes())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[5:7]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_bytes(msgspec.json.encode(tokenizer))
    return folder


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    """`plain` answers without drafts, `drafted` and `twin` are the same weights with a draft model: `small`, and itself
    under the name `self`. `foreign` and `bereft` have draft models that cannot be."""
    flags = [
        f"{folder}/large,name=plain,speculation=off",
        f"{folder}/large,name=drafted,draft=small",
        f"{folder}/large,name=twin,draft=self",
        f"{folder}/small,name=small",
        f"{folder}/large,name=self,lazy=true",
        f"{folder}/other,name=other,lazy=true",
        f"{folder}/absent,name=absent,lazy=true",
        f"{folder}/large,name=foreign,draft=other,lazy=true",
        f"{folder}/large,name=bereft,draft=absent,lazy=true",
    ]
    with serving(*(part for flag in flags for part in ("-m", f"{flag},{EXACT}"))) as server:
        yield server


def complete(served: Served, model: str, prompt: str, **fields: Any) -> list[tuple[list[str], str]]:
    """The tokens of every choice, and why it ended."""
    body = {"model": model, "prompt": prompt, "max_tokens": 48, "seed": 5, "logprobs": 0, **fields}
    answer = httpx.post(f"{served.url}/v1/completions", json=body, timeout=100)
    assert answer.status_code == 200, answer.text
    return [(one["logprobs"]["tokens"], one["finish_reason"]) for one in answer.json()["choices"]]


def post(served: Served, verb: str, model: str) -> httpx.Response:
    return httpx.post(f"{served.url}/v1/models/{verb}", json={"model_id": model}, timeout=100)


def drafted_tokens(served: Served, model: str) -> int:
    text = httpx.get(f"{served.url}/metrics").text
    found = re.search(
        rf'^inferloom_engine_drafted_tokens\S*{{[^}}]*"{model}"[^}}]*}} (\d+)', text, re.MULTILINE
    )
    return int(found[1]) if found else 0


@pytest.mark.parametrize("model", ["drafted", "twin"])
@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 0.9, "top_p": 0.9, "n": 2}])
def test_answers_are_those_without_a_draft_model(
    served: Served, model: str, sampling: dict[str, Any]
) -> None:
    for prompt in PROMPTS:
        assert complete(served, model, prompt, **sampling) == complete(served, "plain", prompt, **sampling)


def test_so_are_those_of_many_at_once(served: Served) -> None:
    def ask(model: str) -> list[Any]:
        with ThreadPoolExecutor(8) as several:
            return list(
                several.map(
                    lambda i: complete(served, model, PROMPTS[i % 4], temperature=0, seed=i), range(16)
                )
            )

    assert ask("twin") == ask("plain")


def test_a_draft_model_drafts(served: Served) -> None:
    before = drafted_tokens(served, "twin")
    complete(served, "twin", PROMPTS[0], temperature=0, max_tokens=200, ignore_eos=True)
    assert drafted_tokens(served, "twin") > before
    assert drafted_tokens(served, "plain") == 0


def test_unloading_the_draft_model_in_the_middle_of_an_answer_loses_nothing(served: Served) -> None:
    """The model has the draft model's weights in its own worker."""
    body = {
        "model": "drafted", "prompt": PROMPTS[1], "max_tokens": 300, "ignore_eos": True, "temperature": 0, "stream": True,
    }  # fmt: skip
    text, unloaded = "", False
    with httpx.stream("POST", f"{served.url}/v1/completions", json=body, timeout=100) as stream:
        for line in stream.iter_lines():
            if not line.startswith("data: {"):
                continue
            choices = json.loads(line.removeprefix("data: "))["choices"]
            text += "".join(choice["text"] for choice in choices)
            if not unloaded:
                assert post(served, "unload", "small").json()["status"] == "unloaded"
                unloaded = True
    assert unloaded
    body["model"], body["stream"] = "plain", False
    expected = httpx.post(f"{served.url}/v1/completions", json=body, timeout=100).json()
    assert text == expected["choices"][0]["text"]


def test_a_model_is_loaded_with_its_draft_model_whether_that_is_loaded_by_itself_or_not(
    served: Served,
) -> None:
    post(served, "unload", "small")
    assert post(served, "reload", "drafted").json()["status"] == "loaded"
    assert httpx.get(f"{served.url}/v1/models/small").json()["status"] == "unloaded"
    assert complete(served, "drafted", PROMPTS[0], temperature=0) == complete(
        served, "plain", PROMPTS[0], temperature=0
    )
    assert complete(served, "small", PROMPTS[0], temperature=0)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("foreign", "other cannot draft for foreign: their tokenizers differ"),
        ("bereft", "/absent"),
    ],
)
def test_a_draft_model_that_cannot_be_is_an_error_that_says_so(served: Served, model: str, said: str) -> None:
    body = {"model": model, "prompt": "x", "max_tokens": 1}
    answer = httpx.post(f"{served.url}/v1/completions", json=body, timeout=100)
    assert answer.status_code >= 400
    assert said in answer.json()["error"]["message"]
    assert complete(served, "plain", "x", max_tokens=1)


def test_a_draft_model_that_is_not_declared_is_refused_before_anything_is_served(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "inferloom", "serve", "-m", f"{folder}/large,name=large,draft=smal",
         "-m", f"{folder}/small,name=small", "--port", "0"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert 'there is no model "smal"' in done.stderr
    assert 'did you mean "small"?' in done.stderr
