"""One line on the terminal that says how far a load is, while a command waits for it."""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from inferloom.cli.session import Session
from inferloom.errors import InferloomError

_CLEAR = "\r\x1b[K"


class LoadLine:
    """Written again with every event, cleared at the end; nothing is written after that."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._over = False

    def note(self, name: str, event: Any) -> None:
        """Take in one event of the server."""
        if name == "load_progress":
            fraction = event.get("fraction")
            how_far = f"{fraction:.0%}" if fraction is not None else ""
            parts = [event["id"], "loading", event.get("stage") or "", how_far, event.get("detail") or ""]
        elif name == "model":
            parts = [event["id"], event["state"]]
        else:
            return
        text = " ".join(part for part in parts if part)
        width = shutil.get_terminal_size().columns
        with self._lock:
            if not self._over:
                self._stream.write(_CLEAR + text[: width - 1])
                self._stream.flush()

    def clear(self) -> None:
        with self._lock:
            self._over = True
            self._stream.write(_CLEAR)
            self._stream.flush()


@contextmanager
def load_shown(session: Session, model: str) -> Iterator[None]:
    """While the context lasts, what happens to `model` is said on stderr, if that is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    line = LoadLine(sys.stderr)

    def listen() -> None:
        # The command itself says what is wrong with the server.
        with contextlib.suppress(InferloomError, ValueError, KeyError):
            for name, event in session.events(model):
                line.note(name, event)

    threading.Thread(target=listen, daemon=True).start()
    try:
        yield
    finally:
        line.clear()
