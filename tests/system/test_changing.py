"""The configuration's file of a server that runs: read again by the command, by SIGHUP and by the watch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from factories.server import Served, serving
from system.processes import gateway_of, wait_until

SLOW = "one two three four five six seven eight nine ten eleven twelve"


def model(name: str, text: str, *, rate: float = 0) -> str:
    return (
        f'[[model]]\nname = "{name}"\n[model.driver]\ntype = "dummy"\n[model.driver.options]\n'
        f'text = "{text}"\ntokens_per_second = {float(rate)}\n'
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(model("a", SLOW, rate=15) + model("b", "old"))
    return path


@pytest.fixture
def server(file: Path) -> Iterator[Served]:
    with serving("--config", str(file)) as served:
        yield served


def said(served: Served, name: str) -> str:
    body = {"model": name, "messages": "x"}
    answer = httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=30)
    return str(answer.json()["choices"][0]["message"]["content"])


def config(served: Served, verb: str, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "inferloom", "config", verb, *flags],
        env={**os.environ, "INFERLOOM_URL": served.url},
        capture_output=True,
        text=True,
        timeout=60,
    )


def workers(served: Served) -> set[int]:
    return {child.pid for child in gateway_of(served).children}


def test_plan_and_apply_touch_the_model_that_differs_alone(server: Served, file: Path) -> None:
    with ThreadPoolExecutor(1) as beside:
        before = workers(server)
        stream = beside.submit(said, server, "a")
        file.write_text(model("a", SLOW, rate=15) + model("b", "new"))
        plan = json.loads(config(server, "plan", "--json").stdout)
        assert [(one["key"], one["effect"]) for one in plan["changes"]] == [
            ("model.b.driver.options.text", "reload")
        ]
        applied = config(server, "apply")
        assert (applied.returncode, applied.stderr) == (0, "")
        assert applied.stdout.splitlines()[1].endswith("reload of b  yes")
        assert said(server, "b") == "new"
        assert stream.result() == SLOW
    after = workers(server)
    assert (len(before), len(after), len(before & after)) == (3, 3, 2)  # the forkserver and the worker of a
    assert "all of it holds" in config(server, "plan").stdout


def test_a_wrong_file_is_told_with_its_line_and_nothing_changes(server: Served, file: Path) -> None:
    file.write_text(model("a", SLOW) + '\n[server]\nport = "high"\n')
    done = config(server, "apply")
    line = file.read_text().splitlines().index('port = "high"') + 1
    assert done.returncode == 2
    assert f"{file}:{line}: server.port must be an integer" in done.stderr
    assert said(server, "b") == "old"


def test_a_hangup_reads_the_file_again(server: Served, file: Path) -> None:
    file.write_text(model("a", SLOW, rate=15) + model("b", "new"))
    server.process.send_signal(signal.SIGHUP)
    server.wait_for("1 change holds now")
    assert said(server, "b") == "new"
    file.write_text("nonsense")
    server.process.send_signal(signal.SIGHUP)
    server.wait_for("nothing has changed")
    assert f"{file}:1: not valid TOML" in server.output
    assert said(server, "b") == "new"


def test_flags_go_before_the_file_when_it_is_read_again(file: Path) -> None:
    with serving("--config", str(file), "--default-model-id", "b") as served:
        assert said(served, "default") == "old"
        file.write_text(model("a", "first") + model("b", "new"))
        assert config(served, "apply").returncode == 0
        assert said(served, "default") == "new"


def test_a_server_without_a_file_goes_on_after_a_hangup() -> None:
    with serving("-m", ",name=dummy,driver=dummy,text=here") as served:
        served.process.send_signal(signal.SIGHUP)
        served.wait_for("without a configuration file")
        assert said(served, "dummy") == "here"
        done = config(served, "plan")
        assert (done.returncode, "without a configuration file" in done.stderr) == (2, True)


def test_a_watched_file_is_applied_when_it_was_written(file: Path) -> None:
    file.write_text("[server]\nwatch_config = true\n" + file.read_text())
    with serving("--config", str(file)) as served:
        file.write_text(file.read_text().replace('"old"', '"new"'))
        served.wait_for("1 change holds now")
        wait_until(lambda: said(served, "b") == "new")
