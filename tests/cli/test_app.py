from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from inferloom.cli.app import COMMANDS, load_command, main
from inferloom.config.home import config_path

DUMMY = """
[[model]]
name = "scripted"
aliases = ["other"]
[model.driver]
type = "dummy"
device = ["cpu"]
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, and an address where nothing answers."""
    monkeypatch.setenv("INFERLOOM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("INFERLOOM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("INFERLOOM_URL", raising=False)
    monkeypatch.setattr("inferloom.cli.session.DEFAULT_URL", "http://127.0.0.1:1")
    return tmp_path / "home"


def status(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_of_the_table_is_there_and_has_help(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert load_command(name).name == name
    assert status(name, "--help") == 0
    assert f"inferloom {name}" in capsys.readouterr().out


def test_an_unknown_command_is_a_usage_error_with_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("serv") == 2
    assert "'serve'" in capsys.readouterr().err


def test_nothing_to_serve_is_one_sentence_that_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("serve") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: there is nothing to serve") and error.count("\n") == 1
    assert "inferloom serve -m smollm2" in error and "inferloom config init" in error


def test_an_error_has_no_traceback_unless_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    from inferloom.errors import ConfigError

    assert status("serve") == 2
    assert "Traceback" not in capsys.readouterr().err
    with pytest.raises(ConfigError):
        main(["serve", "--debug"])


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--adapter", "path/to/adapter", "--adapter-type", "lora"), "LoRA adapters"),
        (("--model-class", "CustomModel"), "model classes"),
        (("--model-type", "onnx"), "ONNX"),
        (("--tensor-parallel-size", "4"), "tensor parallelism"),
        (("--pipeline-parallel-size", "2"), "pipeline parallelism"),
    ],
)
def test_a_flag_whose_feature_comes_later_is_refused_with_the_reason(
    flags: tuple[str, ...], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status("serve", "-m", "smollm2", *flags, "--check-config") == 2
    assert reason in capsys.readouterr().err


def test_the_flags_of_older_documents_are_taken(capsys: pytest.CaptureFixture[str]) -> None:
    flags = (
        "--max-batch-size 16 --max-concurrent-requests 50 --max-model-len 4096 --gpu-memory-utilization 0.8"
    )
    more = "--enable-metrics --log-level info --lazy-loading --dtype half --host 127.0.0.1 -p 9000 --tensor-parallel-size 1"
    names = "--default-model-id other"
    models = ("--model", "smollm2,name=one", "--model", "smollm2,name=other")
    assert status("serve", *models, *flags.split(), *more.split(), *names.split(), "--check-config") == 0
    assert capsys.readouterr().out == "the configuration is valid: 2 models\n"


def test_a_dry_run_shows_what_would_be_served_and_loads_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        status("serve", "-m", "smollm2", "-m", ",name=scripted,driver=dummy", "-p", "9000", "--dry-run") == 0
    )
    out = capsys.readouterr().out
    assert "would serve on http://127.0.0.1:9000" in out
    lines = {line.split()[0]: line for line in out.splitlines()[2:]}
    assert "to be fetched" in lines["smollm2"] and "93MB" in lines["smollm2"]
    assert "You are a concise assistant" in lines["smollm2"]
    assert "dummy" in lines["scripted"]


def test_the_users_file_is_served_where_nothing_is_named(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home.mkdir()
    config_path().write_text(DUMMY)
    assert status("serve", "--dry-run") == 0
    assert "scripted" in capsys.readouterr().out


def test_a_named_file_is_served_and_models_are_added(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "models.toml"
    file.write_text(DUMMY)
    assert status("serve", "--config", str(file), "-m", ",name=added,driver=dummy", "--dry-run") == 0
    assert {"scripted", "added"} <= set(capsys.readouterr().out.split())


@pytest.mark.parametrize("command", [("from-config", "--file"), ("multi-model", "--config")])
def test_several_models_come_from_one_file(
    command: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "models.json"
    file.write_text('{"one": {"alias": "small", "Plain": {"model_id": "smollm2"}}}')
    assert status(*command, str(file), "--dry-run") == 0
    assert "small" in capsys.readouterr().out


def test_the_models_of_the_configuration_are_listed_where_no_server_answers(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home.mkdir()
    config_path().write_text(DUMMY)
    assert status("models") == 0
    shown = capsys.readouterr()
    assert "scripted *" in shown.out
    assert "no server answers" in shown.err


def test_unloading_needs_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("unload", "smollm2") == 1
    assert "inferloom serve" in capsys.readouterr().err


def test_a_reader_that_leaves_the_pipe_ends_the_command_quietly() -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m inferloom config schema | head -c 1"],
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert done.stderr == ""


def test_make_help_lists_what_one_does_with_a_checkout() -> None:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        ["make", "-C", root, "--no-print-directory", "help"], capture_output=True, text=True
    )
    for target in ("serve", "test", "lint", "bench", "docs"):
        assert f"make {target} " in done.stdout
