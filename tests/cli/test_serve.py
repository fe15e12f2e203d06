"""The commands end to end: a server in a process of its own, clients in theirs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from factories.server import Served, serving

ANSWER = "This is the dummy driver: every answer is this sentence."
SLOW = ",name=slow,driver=dummy,tokens_per_second=5"
BROKEN = ",name=broken,driver=dummy,fail_load=no such luck"
CONFIG = """
[[model]]
name = "one"
lazy = true
[model.driver]
type = "dummy"
device = ["cpu"]

[[model]]
name = "two"
[model.driver]
type = "dummy"
device = ["cpu"]
[model.driver.options]
text = "I am two."
"""


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(
        "-m", ",name=dummy,driver=dummy", "-m", SLOW, "-m", ",name=idle,driver=dummy,lazy=true"
    ) as server:
        server.wait_for("dummy ready in ")
        server.wait_for("slow ready in ")
        yield server


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "config.toml").write_text(CONFIG)
    return folder


# The default address may have a server on the machine that runs the tests: here nothing ever answers at it.
ELSEWHERE = """
import inferloom.cli.session
from inferloom.cli.app import main

inferloom.cli.session.DEFAULT_URL = "http://127.0.0.1:1"
main()
"""


def inferloom(
    *arguments: str, url: str | None = None, home: Path | None = None, typed: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a command with `typed` on its standard input."""
    environment = {key: value for key, value in os.environ.items() if key != "INFERLOOM_URL"}
    environment |= {"INFERLOOM_URL": url} if url else {}
    environment |= {"INFERLOOM_HOME": str(home)} if home else {}
    return subprocess.run(
        [sys.executable, "-c", ELSEWHERE, *arguments],
        input=typed,
        capture_output=True,
        text=True,
        env=environment,
        timeout=100,
    )


# --- beside a running server ----------------------------------------------------------------------------------------


def test_the_first_lines_say_what_is_served_and_where(served: Served) -> None:
    lines = served.printed.splitlines()
    assert lines[0].endswith(f"serves on {served.url}")
    assert lines[1].split() == ["dummy", "dummy", "(default)"]
    assert lines[3].split() == ["idle", "dummy", "(lazy)"]


def test_the_curl_of_the_banner_works_as_it_stands(served: Served) -> None:
    command = next(line for line in served.printed.splitlines() if line.strip().startswith("curl "))
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout)["choices"][0]["message"]["content"] == ANSWER


def test_a_lazy_model_is_not_announced(served: Served) -> None:
    assert "idle ready" not in served.output


def test_ask_prints_the_answer_and_nothing_else(served: Served) -> None:
    done = inferloom("ask", "What", "is", "it?", url=served.url)
    assert (done.returncode, done.stdout, done.stderr) == (0, ANSWER + "\n", "")


def test_what_is_piped_in_is_part_of_the_question(served: Served) -> None:
    assert inferloom("ask", url=served.url, typed="a question").stdout == ANSWER + "\n"
    silent = inferloom("ask", url=served.url)
    assert silent.returncode == 2 and "there is no question" in silent.stderr


def test_an_unknown_model_is_one_sentence(served: Served) -> None:
    done = inferloom("ask", "x", "-m", "nope", url=served.url)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "nope" in done.stderr and "Traceback" not in done.stderr


def test_models_lists_states_in_the_order_of_the_configuration(served: Served) -> None:
    lines = inferloom("models", url=served.url).stdout.splitlines()
    assert lines[0].split()[:2] == ["ID", "STATE"]
    assert [line.split()[0] for line in lines[1:]] == ["dummy", "slow", "idle"]
    assert lines[1].split()[1] == "*"


def test_models_are_unloaded_and_loaded_by_name(served: Served) -> None:
    assert inferloom("unload", "idle", url=served.url).stdout.startswith("idle: unloaded")
    assert inferloom("load", "idle", url=served.url).stdout.startswith("idle: loaded")
    assert inferloom("unload", "idle", url=served.url).returncode == 0
    assert inferloom("reload", "idle", url=served.url).stdout.startswith("idle: loaded")
    assert inferloom("unload", "nope", url=served.url).returncode == 2


def test_a_chat_runs_commands_and_answers(served: Served, tmp_path: Path) -> None:
    saved = tmp_path / "chat.json"
    typed = f"hello\n/model slow\n/model nope\n/system Be brief.\n/stats\n/history\n/save {saved}\n/nonsense\n/quit\n"
    done = inferloom("chat", url=served.url, typed=typed)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[:3] == [ANSWER, "talking to slow", "system prompt: Be brief."]
    assert f"assistant: {ANSWER}" in lines
    assert "nope" in done.stderr and "/nonsense" in done.stderr
    assert json.loads(saved.read_text())["messages"][-1] == {"role": "assistant", "content": ANSWER}


def test_ctrl_c_ends_the_answer_and_not_the_chat(served: Served) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "inferloom", "chat", "-m", "slow", "--url", served.url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as chat:
        assert chat.stdin is not None and chat.stdout is not None
        chat.stdin.write("hello\n")
        assert chat.stdout.read(4) == "This"
        chat.send_signal(signal.SIGINT)
        rest = chat.stdout.readline()
        assert rest != ANSWER[4:] + "\n"
        chat.stdin.write("/history\n")
        assert chat.stdout.readline() == "user: hello\n"
        assert chat.stdout.readline().startswith("assistant: This")
        chat.stdin.close()
        assert chat.wait(30) == 0


# --- on their own ---------------------------------------------------------------------------------------------------


def test_without_a_server_ask_starts_the_model_and_says_so(home: Path) -> None:
    done = inferloom("ask", "x", "-m", "two", home=home)
    assert (done.returncode, done.stdout) == (0, "I am two.\n")
    assert "starting two for this command" in done.stderr


def test_without_a_server_a_chat_starts_the_default_model(home: Path) -> None:
    done = inferloom("chat", home=home, typed="hello\n/model\n/model two\n")
    assert done.returncode == 0
    assert done.stdout.startswith(ANSWER)
    assert "one *" in done.stdout
    assert "one model for itself" in done.stderr


# --- the server's own end -------------------------------------------------------------------------------------------


def test_a_port_in_use_is_one_sentence(served: Served) -> None:
    done = inferloom("serve", "-m", ",name=x,driver=dummy", "--port", str(served.port))
    assert done.returncode == 2
    assert f"port {served.port}" in done.stderr and "Traceback" not in done.stderr


def test_a_model_that_fails_to_load_is_told_and_the_others_serve() -> None:
    with serving("-m", BROKEN, "-m", ",name=dummy,driver=dummy") as server:
        server.wait_for("no such luck")
        server.wait_for("dummy ready in ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_an_idle_server_at_once(number: int) -> None:
    with serving("-m", ",name=dummy,driver=dummy") as server:
        server.wait_for("dummy ready in ")
        assert server.stop(with_signal=number) == 0
        assert "Traceback" not in server.output
