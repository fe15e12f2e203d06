from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from xml.etree import ElementTree

import pytest
from cli.conftest import served
from cli.standin import StandIn
from factories.server import DUMMY, Served, serving

from inferloom.cli.bench_report import Level, Spread, picture
from inferloom.cli.load import Sample


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with serving(*DUMMY) as server:
        yield server


def bench(url: str, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "inferloom", "bench", "--url", url, *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_sweep_prints_a_row_for_each_level_and_writes_json_and_a_chart(
    server: Served, tmp_path: Path
) -> None:
    figures, chart = tmp_path / "figures.json", tmp_path / "chart.svg"
    done = bench(
        server.url,
        "-c",
        "1,3",
        "-n",
        "6",
        "--output-tokens",
        "16",
        "--json",
        str(figures),
        "--plot",
        str(chart),
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(figures.read_text())
    assert [level["concurrency"] for level in told["levels"]] == [1, 3]
    for level in told["levels"]:
        assert (level["requests"], level["errors"], level["output_tokens"]) == (6, 0, 6 * 16)
        assert level["time_to_first_token_ms"]["p50"] <= level["latency_ms"]["p50"]
    assert told["model"] == "dummy"
    assert abs(told["levels"][0]["prompt_tokens"] / 6 - 128) < 16, "prompts are about as long as asked for"
    assert "output tok/s" in done.stdout
    assert ElementTree.parse(chart).getroot().tag.endswith("svg")


def test_json_alone_on_standard_output(server: Served) -> None:
    done = bench(server.url, "-c", "2", "-n", "2", "--json", "-")
    assert json.loads(done.stdout)["levels"][0]["requests"] == 2


def test_a_server_that_does_not_know_ignore_eos_is_measured_without_it() -> None:
    standin = StandIn(refuses="ignore_eos")
    with ExitStack() as stack:
        done = bench(served(standin, stack).url, "-m", "org/small", "-c", "1", "-n", "1")
    assert done.returncode == 0, done.stderr
    assert "ignore_eos" not in standin.requests[-1]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("-c", "none"), "write whole numbers with commas"),
        (("-m", "absent"), "model not found: 'absent'"),
        (("--plot", "/nowhere/chart.svg"), "there is no folder /nowhere"),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_sentence(
    server: Served, flags: tuple[str, ...], said: str
) -> None:
    done = bench(server.url, *flags)
    assert done.returncode != 0
    assert said in done.stderr and done.stderr.startswith("error: ")


def test_an_address_where_nothing_answers() -> None:
    done = bench("http://127.0.0.1:1")
    assert done.returncode == 1 and "nothing answers at http://127.0.0.1:1" in done.stderr


def test_percentiles_are_of_the_nearest_rank() -> None:
    assert Spread.of([i / 1000 for i in range(1, 101)]) == Spread(50.0, 90.0, 99.0)
    assert Spread.of([0.002]) == Spread(2.0, 2.0, 2.0)
    assert Spread.of([]) is None


def test_a_level_counts_errors_but_not_into_rates() -> None:
    good = Sample(began=1.0, ended=3.0, pieces=[1.5, 2.0, 3.0], prompt_tokens=7, completion_tokens=3)
    bad = Sample(began=1.0, ended=5.0, pieces=[], error="gone")
    level = Level.of([good, bad], concurrency=2)
    assert (level.requests, level.errors, level.error) == (2, 1, "gone")
    assert level.output_tokens_per_second == 3 / 4
    assert level.time_to_first_token_ms == Spread(500.0, 500.0, 500.0)
    assert level.time_per_output_token_ms == Spread(750.0, 750.0, 750.0)
    assert "<polyline" in picture([level], title="one <level>")
