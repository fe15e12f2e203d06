"""`inferloom top`: what it reads, what it draws, and how it leaves the terminal."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from contextlib import ExitStack

import pytest
from cli.conftest import served
from cli.standin import StandIn

from inferloom.cli.app import main
from inferloom.cli.listing import ModelRow
from inferloom.cli.readings import Counters, Readings, counters, lines, readings
from inferloom.cli.session import Session
from inferloom.cli.top import cells, drawn
from inferloom.cli.transport import HttpTransport, NoServer

METRICS = """# HELP inferloom_generated_tokens_total Tokens generated.
# TYPE inferloom_generated_tokens_total counter
inferloom_generated_tokens_total{{model="org/small"}} {tokens}
inferloom_generated_tokens_total{{model="od\\"d"}} 3.0
inferloom_engine_sequences_running{{model="org/small"}} 2.0
inferloom_engine_sequences_waiting{{model="org/small"}} 5.0
inferloom_requests_in_flight 7.0
"""
SMALL = ModelRow(id="org/small", state="ready", bytes=269_000_000, default=True)


def test_counters_are_read_by_model_from_prometheus_text() -> None:
    found = counters(METRICS.format(tokens="1.2e+03"), now=1.0)
    assert found == Counters(1.0, {"org/small": 2}, {"org/small": 5}, {"org/small": 1200.0, 'od"d': 3.0})


def test_a_rate_needs_two_readings_and_is_never_below_nothing() -> None:
    first, second = (
        Counters(1.0, generated={"org/small": 100.0}),
        Counters(3.0, generated={"org/small": 300.0}),
    )
    assert lines([SMALL], first, None)[0].tokens_per_second is None
    assert lines([SMALL], second, first)[0].tokens_per_second == 100.0
    started_again = Counters(5.0, generated={"org/small": 0.0})
    assert lines([SMALL], started_again, second)[0].tokens_per_second == 0.0


def test_the_queue_is_who_waits_for_the_model_and_in_its_engine() -> None:
    waited = ModelRow(id="a", state="loading", waiting=3)
    assert lines([waited], Counters(1.0, waiting={"a": 2}), None)[0].waiting == 5


def test_why_is_the_models_reason_or_what_an_event_said() -> None:
    failed = ModelRow(id="a", state="failed", reason="no such file")
    gone = ModelRow(id="b", state="unloaded")
    found = lines([failed, gone], Counters(1.0), None, {"a": "evicted", "b": "evicted: c needed room"})
    assert [line.why for line in found] == ["no such file", "evicted: c needed room"]
    assert cells(found[0])[-1] == "no such file"
    full = lines(
        [ModelRow(id="a", reason="out of memory: a needs 9; held by (MiB):\nb 7")], Counters(1.0), None
    )
    assert cells(full[0])[-1] == "out of memory: a needs 9"  # a line of the table is a line


def test_events_say_why_a_model_left_until_it_loads_again() -> None:
    with ExitStack() as stack:
        reader = Readings(Session(served(StandIn(cards={"vectors": {"state": "unloaded"}}), stack)))
        reader.note("evicted", {"id": "vectors", "reason": "org/small needed room"})
        assert reader.take()[1].why == "evicted: org/small needed room"
        reader.note("model", {"id": "vectors", "state": "loading"})
        assert reader.take()[1].why == ""


def test_an_event_wakes_the_reader_at_once() -> None:
    happened = [("expired", {"id": "vectors", "reason": None})]
    with ExitStack() as stack:
        session = Session(served(StandIn(told=happened), stack))
        found = readings(session, seconds=3600.0)
        assert [line.why for line in next(found) or []] == ["", ""]
        assert [line.why for line in next(found) or []] == ["", "expired"]


def test_a_server_without_events_is_polled() -> None:
    with ExitStack() as stack:
        found = readings(Session(served(StandIn(older=True), stack)), seconds=0.05)
        for _ in range(3):
            shown = next(found)
            assert shown is not None and [line.id for line in shown] == ["org/small", "vectors"]


def test_a_server_that_goes_away_is_shown_as_such_and_the_last_table_stays() -> None:
    with ExitStack() as stack:
        found = readings(Session(served(StandIn(older=True), stack)), seconds=0.05)
        assert next(found) is not None
        stack.close()
        assert next(found) is None
    with pytest.raises(NoServer):
        next(readings(Session(HttpTransport("http://127.0.0.1:1")), seconds=1.0))
    assert "it was" in text_of(lost=True)
    assert "it was" not in text_of(lost=False)


def test_the_memory_of_models_that_share_a_worker_counts_once() -> None:
    from rich.console import Console

    out = io.StringIO()
    twins = [
        ModelRow(id="a", state="ready", memory=10**9, shares=["b"]),
        ModelRow(id="b", state="ready", memory=10**9, shares=["a"]),
        ModelRow(id="c", state="ready", memory=10**9),
    ]
    Console(file=out, width=100).print(drawn(lines(twins, Counters(1.0), None)))
    assert "3 of 3 ready, 2.0GB, " in out.getvalue()


def text_of(*, lost: bool) -> str:
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=100).print(drawn(lines([SMALL], Counters(1.0), None), lost=lost))
    return out.getvalue()


def test_names_and_reasons_are_not_markup() -> None:
    from rich.console import Console

    out = io.StringIO()
    odd = ModelRow(id="[red]a[/]", state="failed", reason="[/x] broke")
    Console(file=out, width=100).print(drawn(lines([odd], Counters(1.0), None)))
    assert "[red]a[/]" in out.getvalue() and "[/x] broke" in out.getvalue()


def test_once_prints_one_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    standin = StandIn(cards={"org/small": {"default": True, "weight_bytes": 269_000_000}})
    with ExitStack() as stack:
        monkeypatch.setenv("INFERLOOM_URL", served(standin, stack).url)
        for flags in (["--once"], []):  # the output is no terminal: that is the same
            standin.metrics = [METRICS.format(tokens=0), METRICS.format(tokens=90)]
            with pytest.raises(SystemExit) as caught:
                main(["top", *flags])
            assert not caught.value.code
            title, small, vectors = capsys.readouterr().out.splitlines()
            assert title.split()[-4:] == ["RUNNING", "QUEUE", "EXPIRES", "WHY"]
            name, star, state, memory, _, rate, running, queue, _, why = small.split()
            assert (name, star, state, memory) == ("org/small", "*", "ready", "269MB")
            assert (running, queue, why) == ("2", "5", "-")
            assert 0 < int(rate) <= 180
            assert vectors.split() == ["vectors", "ready", "-", "-", "0", "-", "-", "-", "-"]
        standin.metrics = [METRICS.format(tokens=0)]
        with pytest.raises(SystemExit):
            main(["top", "--once", "--json"])
        shown = json.loads(capsys.readouterr().out)
        assert shown[0]["id"] == "org/small" and shown[0]["tokens_per_second"] == 0.0


def test_it_needs_a_server(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("INFERLOOM_URL", raising=False)
    monkeypatch.setattr("inferloom.cli.session.DEFAULT_URL", "http://127.0.0.1:1")
    with pytest.raises(SystemExit) as caught:
        main(["top"])
    assert caught.value.code == 1
    assert capsys.readouterr().err.startswith("error: no server answers at ")


def test_ctrl_c_leaves_the_terminal_as_it_was() -> None:
    with ExitStack() as stack:
        url = served(StandIn(), stack).url
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 120, 0, 0))
        process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", "inferloom.cli.app", "top", "--interval", "0.1"],
                env={**os.environ, "INFERLOOM_URL": url, "TERM": "xterm-256color"},
                stdin=theirs,
                stdout=theirs,
                stderr=theirs,
            )
        )
        os.close(theirs)
        drawn_first = read_until(ours, b"2 of 2 ready")
        assert b"\x1b[?1049h" in drawn_first and b"\x1b[?25l" in drawn_first  # a screen of its own, no cursor
        process.send_signal(signal.SIGINT)
        rest = read_until(ours, None)
        assert process.wait(30) == 0
        assert b"\x1b[?1049l" in rest and b"\x1b[?25h" in rest
        assert b"Traceback" not in rest
        os.close(ours)


def read_until(descriptor: int, text: bytes | None) -> bytes:
    """What is written on a terminal until `text` was, or, with None, until the writer has gone."""
    found = b""
    deadline = time.monotonic() + 60
    while text is None or text not in found:
        assert time.monotonic() < deadline, found
        if select.select([descriptor], [], [], 1.0)[0]:
            try:
                found += os.read(descriptor, 65536)
            except OSError:
                break
    return found
