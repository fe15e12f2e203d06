"""Logging on stderr: one line each, text on a terminal and JSON otherwise; never prompts, never keys."""

from __future__ import annotations

import logging
import sys
import time
import traceback

import msgspec

logger = logging.getLogger("inferloom.gateway")
access = logging.getLogger("inferloom.access")

_FIELDS = ("request_id", "model", "method", "path", "status", "seconds")


def configure(level: str, *, access_log: bool) -> None:
    """Send everything to stderr. `level`: debug, info, warning or error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextLines() if sys.stderr.isatty() else JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    set_levels(level, access_log=access_log)


def set_levels(level: str, *, access_log: bool) -> None:
    """What is logged from now on."""
    logging.getLogger("inferloom").setLevel(level.upper())
    access.setLevel(logging.INFO if access_log else logging.WARNING)


class TextLines(logging.Formatter):
    """`12:03:55 warning message request_id=… model=…`"""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{stamp} {record.levelname.lower()} {one_line(record.getMessage())}"
        for name in _FIELDS:
            value = getattr(record, name, None)
            if value not in (None, ""):
                line += f" {name}={value}"
        if record.exc_info and record.exc_info[1] is not None:
            line += "\n" + "".join(traceback.format_exception(record.exc_info[1])).rstrip()
        return line


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name in _FIELDS:
            value = getattr(record, name, None)
            if value not in (None, ""):
                entry[name] = value
        if record.exc_info and record.exc_info[1] is not None:
            entry["traceback"] = "".join(traceback.format_exception(record.exc_info[1]))
        return msgspec.json.encode(entry, enc_hook=str).decode()


def one_line(text: str) -> str:
    """Line breaks made visible: a message is never taken for two."""
    return text.replace("\r", "\\r").replace("\n", "\\n")
