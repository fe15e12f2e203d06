"""Traces and metrics over OTLP gRPC: a real server, and a collector that the test starts."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from factories.collector import Collector, Span, collecting
from factories.server import Served, serving

SECRET, KEY = "the treasure is under the oak", "sk-very-secret-key"
SERVER, INTERNAL = 2, 1  # kinds of spans in the protocol
MODELS = """
[[model]]
name = "quick"
[model.driver]
type = "dummy"
[model.driver.options]
text = "one two three"

[[model]]
name = "slow"
lazy = true
[model.driver]
type = "dummy"
[model.driver.options]
text = "one two three"
load_secs = 0.4
tokens_per_second = 50

[[model]]
name = "broken"
lazy = true
[model.driver]
type = "dummy"
[model.driver.options]
fail_load = "the disk is on fire"

[[model]]
name = "vectors"
[model.driver]
type = "dummy"
[model.driver.options]
kind = "embed"
"""


def configuration(path: Path, endpoint: str, *, enabled: bool = True) -> tuple[str, str]:
    path.write_text(
        f'[telemetry]\nenabled = {json.dumps(enabled)}\nendpoint = "{endpoint}"\nservice_name = "house"\n{MODELS}'
    )
    return "--config", str(path)


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as started:
        yield started


@pytest.fixture(scope="module")
def server(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    flags = configuration(tmp_path_factory.mktemp("telemetry") / "config.toml", collector.endpoint)
    environment = {"OTEL_METRIC_EXPORT_INTERVAL": "200", "INFERLOOM_API_KEYS": KEY}
    with serving(*flags, environment=environment) as served:
        yield served


Ask = Callable[..., tuple[httpx.Response, dict[str, Span]]]


@pytest.fixture
def ask(server: Served, collector: Collector) -> Ask:
    """Send a chat, or another request: its answer, and its trace's spans by name."""
    count = iter(range(1000))

    def send(
        model: str = "quick",
        path: str = "/v1/chat/completions",
        headers: dict[str, str] | None = None,
        **fields: Any,
    ) -> tuple[httpx.Response, dict[str, Span]]:
        named = f"test-{os.getpid()}-{time.monotonic_ns()}-{next(count)}"
        body = {"model": model, **(fields or {"messages": [{"role": "user", "content": SECRET}]})}
        response = httpx.post(
            f"{server.url}{path}",
            json=body,
            headers={"authorization": f"Bearer {KEY}", "x-request-id": named, **(headers or {})},
            timeout=30,
        )
        return response, collector.trace(with_id=collector.request(named).trace)

    return send


# --- traces -----------------------------------------------------------------------------------------------------------


def test_a_request_is_a_trace_of_its_phases(ask: Ask) -> None:
    response, spans = ask("slow")
    assert response.status_code == 200
    assert set(spans) == {"request", "queue", "load", "prefill", "decode"}
    request = spans.pop("request")
    assert (request.parent, request.kind, request.service) == ("", SERVER, "house")
    assert all(
        (one.parent, one.trace, one.kind) == (request.id, request.trace, INTERNAL) for one in spans.values()
    )
    phases = [spans[name] for name in ("queue", "load", "prefill", "decode")]
    assert all(sooner.ended == later.begun for sooner, later in pairwise(phases))
    assert request.begun <= phases[0].begun
    assert phases[-1].ended == pytest.approx(request.ended, abs=1e-6)
    assert spans["load"].ended - spans["load"].begun > 0.4
    assert spans["decode"].ended > spans["decode"].begun


def test_a_loaded_model_is_not_waited_for(ask: Ask) -> None:
    _, spans = ask("quick")
    assert set(spans) == {"request", "queue", "prefill", "decode"}


def test_spans_tell_of_model_tokens_and_the_first_one(ask: Ask) -> None:
    response, spans = ask("quick")
    usage = response.json()["usage"]
    told = spans["request"].attributes
    assert told["gen_ai.request.model"] == "quick"
    assert told["gen_ai.operation.name"] == "chat"
    assert told["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert told["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
    assert (told["http.request.method"], told["http.route"]) == ("POST", "/v1/chat/completions")
    assert told["http.response.status_code"] == 200
    first = told["inferloom.time_to_first_token_seconds"]
    assert first == pytest.approx(spans["prefill"].ended - spans["request"].begun, abs=1e-4)
    assert spans["prefill"].attributes["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert spans["decode"].attributes["gen_ai.usage.output_tokens"] == usage["completion_tokens"]


def test_a_stream_is_traced_to_its_end(ask: Ask) -> None:
    response, spans = ask("quick", messages="hello", stream=True)
    assert response.text.endswith("data: [DONE]\n\n")
    assert {"prefill", "decode"} <= set(spans)
    assert spans["request"].attributes["gen_ai.usage.output_tokens"] > 0


def test_embeddings_have_their_phase(ask: Ask) -> None:
    response, spans = ask("vectors", path="/v1/embeddings", input="hello")
    assert set(spans) == {"request", "queue", "embed"}
    assert spans["embed"].attributes["gen_ai.usage.input_tokens"] == response.json()["usage"]["prompt_tokens"]


def test_traceparent_makes_the_request_part_of_the_callers_trace(ask: Ask) -> None:
    trace, parent = os.urandom(16).hex(), os.urandom(8).hex()
    _, spans = ask("quick", headers={"traceparent": f"00-{trace}-{parent}-01", "tracestate": "a=b"})
    assert (spans["request"].trace, spans["request"].parent) == (trace, parent)
    assert spans["decode"].parent == spans["request"].id


@pytest.mark.parametrize("header", ["nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "ff-x-y-z"])
def test_a_traceparent_that_is_none_begins_a_trace(ask: Ask, header: str) -> None:
    response, spans = ask("quick", headers={"traceparent": header})
    assert response.status_code == 200
    assert spans["request"].parent == ""


def test_a_caller_that_does_not_sample_is_not_traced(server: Served, ask: Ask, collector: Collector) -> None:
    unsampled = os.urandom(16).hex()
    httpx.post(
        f"{server.url}/v1/chat/completions",
        json={"model": "quick", "messages": "x"},
        headers={"authorization": f"Bearer {KEY}", "traceparent": f"00-{unsampled}-{'1' * 16}-00"},
    )
    ask("quick")  # came after it, and was sent after it
    assert not [one for one in collector.spans if one.trace == unsampled]


def test_a_failed_load_is_a_failed_request(ask: Ask) -> None:
    response, spans = ask("broken")
    assert response.status_code == 503
    assert set(spans) == {"request", "queue", "load"}
    assert spans["request"].failed
    assert spans["request"].attributes["error.type"] == "model_load_failed"
    assert spans["request"].attributes["http.response.status_code"] == 503


def test_a_clients_mistake_is_no_failure_of_ours(ask: Ask) -> None:
    response, spans = ask("quick", messages=[], temperature=9)
    assert response.status_code == 400
    assert not spans["request"].failed
    assert spans["request"].attributes["error.type"] == response.json()["error"]["code"]


def test_unknown_names_of_models_are_not_told(ask: Ask) -> None:
    response, spans = ask("my-secret-project")
    assert response.status_code == 404
    assert "gen_ai.request.model" not in spans["request"].attributes


def test_loads_are_traces_of_their_own_and_requests_link_to_them(
    server: Served, ask: Ask, collector: Collector
) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    httpx.post(f"{server.url}/v1/models/unload", json={"model_id": "slow"}, headers=headers, timeout=30)
    _, spans = ask("slow")
    loads = [one for one in collector.spans if one.name == "model.load"]
    (load,) = [one for one in loads if (one.id,) == spans["load"].links]
    assert load.parent == ""
    stages = {name: value for name, value in load.attributes.items() if name.startswith("inferloom.load.")}
    assert {f"inferloom.load.{stage}_seconds" for stage in ("open", "pack", "room", "start", "map")} == set(
        stages
    )
    assert stages["inferloom.load.map_seconds"] > 0.4
    others = {name: value for name, value in load.attributes.items() if name not in stages}
    assert others == {"gen_ai.request.model": "slow", "inferloom.model.state": "ready"}
    assert load.ended - load.begun > 0.4
    assert "quick" in {
        one.attributes["gen_ai.request.model"] for one in loads
    }  # at the start, for no request


def test_probes_and_scrapers_are_not_traced(server: Served, ask: Ask, collector: Collector) -> None:
    for path in ("/health", "/ready", "/metrics"):
        httpx.get(f"{server.url}{path}", headers={"authorization": f"Bearer {KEY}"})
    ask("quick")
    assert not {one.attributes.get("http.route") for one in collector.spans} & {
        "/health",
        "/ready",
        "/metrics",
    }


# --- metrics ----------------------------------------------------------------------------------------------------------


def test_metrics_are_those_of_prometheus_under_the_service_name(
    server: Served, ask: Ask, collector: Collector
) -> None:
    ask("quick")
    before = len(collector.metrics)

    def newest() -> dict[str, Any]:
        fresh = collector.metrics[before:]
        assert {service for service, _ in fresh} <= {"house"}
        return {metric.name: metric for _, metric in fresh}

    wanted = {
        "inferloom_http_requests",
        "inferloom_generated_tokens",
        "inferloom_model_loaded",
        "inferloom_model_loads",
        "inferloom_time_to_first_token_seconds",
        "inferloom_queue_wait_seconds",
    }
    collector.wait(lambda: wanted <= set(newest()))
    told = newest()
    tokens = told["inferloom_generated_tokens"].sum
    assert tokens.is_monotonic
    assert tokens.aggregation_temporality == 2  # cumulative
    shown = httpx.get(f"{server.url}/metrics", headers={"authorization": f"Bearer {KEY}"}).text

    def of_quick(points: Any) -> Any:
        return next(
            one
            for one in points
            if ("model", "quick") in {(a.key, a.value.string_value) for a in one.attributes}
        )

    (count,) = re.findall(r'inferloom_generated_tokens_total\{model="quick"\} (\S+)', shown)
    assert 0 < of_quick(tokens.data_points).as_double <= float(count)
    first = of_quick(told["inferloom_time_to_first_token_seconds"].histogram.data_points)
    assert first.count == sum(first.bucket_counts) > 0
    assert len(first.bucket_counts) == len(first.explicit_bounds) + 1
    assert first.sum > 0
    assert of_quick(told["inferloom_model_loaded"].gauge.data_points).as_double == 1


# --- what is never told -----------------------------------------------------------------------------------------------


def test_prompts_answers_and_keys_are_in_no_attribute(ask: Ask, collector: Collector) -> None:
    ask("quick")
    ask("quick", path="/v1/completions", prompt=SECRET)
    told = repr(collector.spans) + repr(collector.metrics)
    for secret in (SECRET, KEY, "one two three"):
        assert secret not in told


# --- when things go wrong ---------------------------------------------------------------------------------------------


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def chat(served: Served) -> httpx.Response:
    return httpx.post(
        f"{served.url}/v1/chat/completions", json={"model": "quick", "messages": "x"}, timeout=30
    )


def test_without_a_collector_requests_go_on_and_one_line_says_so(tmp_path: Path) -> None:
    flags = configuration(tmp_path / "config.toml", f"http://127.0.0.1:{unused_port()}")
    environment = {"OTEL_METRIC_EXPORT_INTERVAL": "100"}
    with serving(*flags, environment=environment) as served, httpx.Client(base_url=served.url) as client:

        def many() -> None:
            for _ in range(800):  # four spans each: more than may wait
                done = client.post("/v1/chat/completions", json={"model": "quick", "messages": "x"})
                assert done.status_code == 200

        many()
        served.wait_for("telemetry cannot be sent to")
        many()
        begun = time.monotonic()
        assert served.stop() == 0
        assert time.monotonic() - begun < 8  # what could not be sent is not waited for
        assert served.output.count("telemetry cannot be sent to") == 1
        assert "Traceback" not in served.output
        assert "opentelemetry" not in served.output


def test_a_collector_that_comes_later_is_reached(tmp_path: Path) -> None:
    port = unused_port()
    flags = configuration(tmp_path / "config.toml", f"http://127.0.0.1:{port}")
    with serving(*flags, environment={"OTEL_METRIC_EXPORT_INTERVAL": "100"}) as served:
        chat(served)
        served.wait_for("telemetry cannot be sent to")
        with collecting(port) as late:
            late.wait(lambda: late.metrics, seconds=30)
            chat(served)
            late.wait(lambda: late.spans, seconds=30)
            served.wait_for("again")


def test_what_is_left_is_sent_at_the_end(tmp_path: Path) -> None:
    with collecting() as collector:
        flags = configuration(tmp_path / "config.toml", collector.endpoint)
        with serving(*flags) as served:
            chat(served)
            assert served.stop() == 0
        assert {"request", "decode"} <= {one.name for one in collector.spans}
        assert "inferloom_generated_tokens" in {metric.name for _, metric in collector.metrics}


MISSING = """
import sys
sys.modules["opentelemetry.sdk"] = None  # as where it is not installed
from inferloom.cli.app import main
main(["serve", *sys.argv[1:]])
"""


def test_missing_packages_are_one_sentence_and_exit_2(tmp_path: Path) -> None:
    flags = configuration(tmp_path / "config.toml", "http://127.0.0.1:4317")
    command = [sys.executable, "-c", MISSING, *flags, "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert re.fullmatch(
        r"error: telemetry.enabled = true needs [^\n]*pip install 'inferloom\[telemetry\]'[^\n]*\n",
        done.stderr,
    )


def test_an_interval_that_is_none_is_one_sentence_and_exit_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = configuration(tmp_path / "config.toml", "http://127.0.0.1:4317")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "often")
    command = [sys.executable, "-m", "inferloom.cli.app", "serve", *flags, "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == "error: OTEL_METRIC_EXPORT_INTERVAL is 'often': write milliseconds, above 0\n"


def test_where_it_is_not_enabled_nothing_of_it_is_imported(tmp_path: Path) -> None:
    flags = configuration(tmp_path / "config.toml", "http://127.0.0.1:4317", enabled=False)
    with serving(*flags) as served:
        chat(served)
        maps = Path(f"/proc/{served.process.pid}/maps").read_text()
    assert "grpc" not in maps
    assert "protobuf" not in maps
