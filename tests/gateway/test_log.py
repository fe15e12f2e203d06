"""What the log looks like: one line each, as text or as JSON."""

from __future__ import annotations

import json
import logging

from inferloom.gateway.log import JsonLines, TextLines


def record(message: str, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("inferloom.gateway", logging.WARNING, __file__, 1, message, (), None)
    made.__dict__.update(extra)
    return made


def test_json_lines_hold_the_request_and_its_model():
    line = JsonLines().format(record("it\nbroke", request_id="r1", model="m", status=503))
    assert "\n" not in line
    entry = json.loads(line)
    assert (entry["level"], entry["message"], entry["logger"]) == (
        "warning",
        "it\nbroke",
        "inferloom.gateway",
    )
    assert (entry["request_id"], entry["model"], entry["status"]) == ("r1", "m", 503)


def test_text_lines_stay_one_line_whatever_is_in_the_message():
    line = TextLines().format(record("it\nbroke\r", request_id="r1", model=""))
    assert line.endswith("warning it\\nbroke\\r request_id=r1")


def test_a_traceback_follows_its_line():
    try:
        raise ValueError("inside")
    except ValueError as error:
        made = record("unexpected")
        made.exc_info = (ValueError, error, error.__traceback__)
    assert "ValueError: inside" in json.loads(JsonLines().format(made))["traceback"]
    assert TextLines().format(made).endswith("ValueError: inside")
