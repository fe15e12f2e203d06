"""Commands that look at a running server and change what it holds, against a stand-in that speaks its interface."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from cli.conftest import served
from cli.standin import StandIn

from inferloom.cli.app import main
from inferloom.cli.waiting import LoadLine

Serve = Callable[[StandIn], StandIn]
FITS = {
    "fits": True,
    "evicts": [{"model_id": "vectors", "bytes": 90_000_000}],
    "bytes": {"weights": 1_200_000_000, "kv": 300_000_000, "workspace": 100_000_000},
    "free_bytes": 900_000_000,
    "expected_secs": 2.14,
    "reason": None,
}


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Makes a stand-in the running server."""
    with ExitStack() as stack:

        def start(standin: StandIn) -> StandIn:
            monkeypatch.setenv("INFERLOOM_URL", served(standin, stack).url)
            return standin

        yield start


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INFERLOOM_URL", raising=False)
    monkeypatch.setattr("inferloom.cli.session.DEFAULT_URL", "http://127.0.0.1:1")


def status(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)


def test_models_show_memory_expiry_and_why(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    cards: dict[str, dict[str, object]] = {
        "org/small": {
            "bytes": {"weights": 1_000_000_000, "kv": 500_000_000, "workspace": 0, "measured": 1_100_000_000},
            "expires_at": time.time() + 290,
            "pinned": True,
        },
        "vectors": {
            "status": "internal_error",
            "state": "failed",
            "reason": "the file is damaged\nin line 3",
        },
    }
    serve(StandIn(cards=cards))
    assert status("models") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [
        *("ID", "STATE", "KIND", "PARAMETERS", "MEMORY", "RESERVED", "EXPIRES", "SOURCE", "WHY")
    ]
    assert "1.1GB     1.5GB  in 5 min" in lines[1] and lines[1].endswith("pinned")
    assert " failed " in lines[2] and lines[2].endswith("the file is damaged")
    assert status("models", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert [card["id"] for card in shown] == ["org/small", "vectors"]
    assert shown[1]["reason"] == "the file is damaged\nin line 3"


def test_a_model_that_loads_shows_how_far_it_is(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    serve(StandIn(cards={"vectors": {"state": "loading", "stage": "weights", "fraction": 0.4}}))
    assert status("models") == 0
    assert "loading weights 40%" in capsys.readouterr().out


def test_whoever_waits_for_a_load_on_a_terminal_sees_how_far_it_is() -> None:
    terminal = io.StringIO()
    line = LoadLine(terminal)
    line.note("snapshot", {"models": []})
    line.note("load_progress", {"id": "large", "stage": "download", "fraction": 0.25, "detail": "3 of 12 MB"})
    assert terminal.getvalue() == "\r\x1b[Klarge loading download 25% 3 of 12 MB"
    line.note("model", {"id": "large", "state": "warming"})
    line.clear()
    line.note("model", {"id": "large", "state": "ready"})
    assert terminal.getvalue().endswith("\r\x1b[Klarge warming\r\x1b[K")


def test_ctrl_c_leaves_the_server_loading_and_says_how_to_stop_it() -> None:
    with ExitStack() as stack:
        standin = StandIn()
        environment = {**os.environ, "INFERLOOM_URL": served(standin, stack).url}
        process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", "inferloom.cli.app", "load", "vectors"],
                env=environment,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        assert standin.loading.wait(60)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        standin.closing = True
    assert process.returncode == 130
    assert said == "interrupted: the load is stopped unless others wait for vectors too\n"


def test_an_expiry_may_be_an_iso_date(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    serve(StandIn(cards={"vectors": {"expires_at": "2001-01-01T00:00:00+00:00"}}))
    assert status("models") == 0
    assert "  now  " in capsys.readouterr().out


def test_unloading_says_what_is_free_again(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    standin = serve(StandIn())
    assert status("unload", "vectors", "--force") == 0
    out = capsys.readouterr().out
    assert out.startswith("vectors: unloaded (") and out.endswith(" s), 312MB are free again\n")
    assert standin.requests == [{"model_id": "vectors", "force": True}]
    assert status("unload", "vectors", "--json") == 0
    assert json.loads(capsys.readouterr().out)["status"] == "unloaded"


def test_a_model_is_pinned_and_let_go(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    standin = serve(StandIn())
    assert status("pin", "vectors") == 0
    assert status("pin", "vectors", "--off") == 0
    assert capsys.readouterr().out == "vectors: pinned\nvectors: no longer pinned\n"
    assert standin.requests == [
        {"model_id": "vectors", "pin": True},
        {"model_id": "vectors", "pin": False},
    ]
    assert status("pin", "vectors", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"model_id": "vectors", "pinned": True}


def test_a_plan_says_what_it_takes_and_who_goes(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    serve(StandIn(plan=FITS))
    assert status("plan", "large") == 0
    assert capsys.readouterr().out.splitlines() == [
        "large needs 1.6GB (1.2GB weights, 300MB KV, 100MB workspace); 900MB are free",
        "loading it evicts vectors (90MB) and takes about 2.14 s",
    ]
    assert status("plan", "large", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"model_id": "large", **FITS}


def test_a_plan_for_a_loaded_model_says_so(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    serve(StandIn(plan={"loaded": True, "fits": True, "evicts": [], "reason": None}))
    assert status("plan", "small") == 0
    assert capsys.readouterr().out == "small is loaded\n"


def test_a_plan_without_the_files_says_what_is_missing(
    serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    serve(StandIn(plan={"fits": None, "evicts": [], "reason": None}))
    assert status("plan", "large") == 0
    assert capsys.readouterr().out == (
        "what large takes is known when its files are there: `inferloom pull` fetches them\n"
    )


def test_a_plan_that_takes_no_room_evicts_nothing(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    serve(StandIn(plan={**FITS, "evicts": [], "waits": True, "expected_secs": None}))
    assert status("plan", "large") == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "loading it evicts nothing",
        "it waits for others that load, leave or have requests",
    ]


def test_a_plan_that_does_not_fit_is_told_with_the_reason(
    serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    serve(StandIn(plan={**FITS, "fits": False, "evicts": [], "reason": "vectors is pinned"}))
    assert status("plan", "large") == 1
    assert capsys.readouterr().out.splitlines()[1] == "it does not fit: vectors is pinned"


@pytest.mark.parametrize("verb", ["pin", "plan", "unload"])
def test_the_verbs_need_a_server(verb: str, nobody: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(verb, "vectors") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: no server answers at ") and "inferloom serve" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("verb", ["pin", "plan"])
def test_an_older_server_is_told_as_such(verb: str, serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    serve(StandIn(older=True))
    assert status(verb, "vectors") == 2
    assert capsys.readouterr().err == (
        f"error: `{verb}` is not supported: the running server is older than this command.\n"
    )


def test_a_model_the_server_does_not_have_is_named(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    serve(StandIn())
    assert status("pin", "nope") == 2
    assert capsys.readouterr().err == "error: model not found: nope\n"
