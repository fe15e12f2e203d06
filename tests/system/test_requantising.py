"""The weights of a running model in another quantisation, through HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from factories.checkpoints import make_checkpoint
from factories.server import Served, serving


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("requantising")
    checkpoint = make_checkpoint(folder / "tiny", "llama")
    cache = {"INFERLOOM_CACHE": str(folder / "cache")}
    flags = ("-m", f"{Path(checkpoint.folder)},name=tiny,threads=1", "-m", ",name=dummy,driver=dummy")
    with serving(*flags, environment=cache) as server:
        yield server


def change(served: Served, body: dict[str, Any], *, path: str = "/v1/models/re_isq") -> httpx.Response:
    return httpx.post(f"{served.url}{path}", json=body, timeout=100)


def details(served: Served) -> dict[str, Any]:
    answer: dict[str, Any] = httpx.get(f"{served.url}/v1/models/tiny").json()
    return answer


def answered(served: Served) -> int:
    body = {"model": "tiny", "prompt": "x", "max_tokens": 3, "ignore_eos": True, "temperature": 0}
    answer = httpx.post(f"{served.url}/v1/completions", json=body, timeout=100).raise_for_status()
    return int(answer.json()["usage"]["completion_tokens"])


def test_a_model_gets_smaller_and_answers_on(served: Served) -> None:
    whole = details(served)["weight_bytes"]
    sizes = []
    for word, scheme in (("Q8_0", "int8"), ("4", "int4"), ("int4-all", "int4-all"), ("none", "none")):
        answer = change(served, {"model_id": "tiny", "ggml_type": word})
        assert answer.status_code == 200, answer.text
        assert answer.json() == {
            "model_id": "tiny",
            "status": "loaded",
            "state": "ready",
            "quantization": scheme,
        }
        assert details(served)["quantization"] == scheme
        assert answered(served) == 3
        sizes.append(details(served)["weight_bytes"])
    assert sizes[2] < sizes[1] < sizes[0] < sizes[3] == whole


def test_without_a_name_it_is_the_default_model_and_mistralrs_path_works_too(served: Served) -> None:
    answer = change(served, {"isq_type": "int8"}, path="/re_isq")
    assert answer.json()["model_id"] == "tiny"
    assert details(served)["quantization"] == "int8"
    assert change(served, {"quantization": "none"}).status_code == 200


def test_an_unloaded_model_stays_unloaded_and_is_loaded_in_its_new_form(served: Served) -> None:
    httpx.post(f"{served.url}/v1/models/unload", json={"model_id": "tiny"}, timeout=100).raise_for_status()
    assert change(served, {"model_id": "tiny", "quantization": "int4"}).json()["status"] == "unloaded"
    small = answered(served) and details(served)["weight_bytes"]
    assert change(served, {"model_id": "tiny", "quantization": "none"}).status_code == 200
    assert small < details(served)["weight_bytes"]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"model_id": "tiny"}, 400, "name the quantization once"),
        ({"model_id": "tiny", "quantization": "int8", "ggml_type": "Q4K"}, 400, "name the quantization once"),
        ({"model_id": "tiny", "quantization": "int3"}, 400, "there is no quantization 'int3'"),
        ({"model_id": "tiny", "quantization": "awq"}, 400, "awq says what a checkpoint is"),
        ({"model_id": "tiny", "ggml_type": "FP8"}, 400, "FP8 is a floating-point format"),
        ({"model_id": "absent", "quantization": "int8"}, 404, "absent"),
        ({"model_id": "dummy", "quantization": "int8"}, 400, "dummy has no weights"),
    ],
)
def test_what_cannot_be_done_is_refused_and_the_model_serves_on(
    served: Served, body: dict[str, Any], status: int, said: str
) -> None:
    answer = change(served, body)
    assert answer.status_code == status
    assert said in answer.json()["error"]["message"]
    assert answered(served) == 3
