"""Errors across the process border: a code of `errors.py` and a message there, the class again here."""

from __future__ import annotations

from inferloom import errors
from inferloom.errors import InferloomError


def _classes() -> dict[str, type[InferloomError]]:
    found: dict[str, type[InferloomError]] = {}
    pending: list[type[InferloomError]] = [InferloomError]
    while pending:
        cls = pending.pop()
        if cls.code is not None and cls.__module__ == errors.__name__:
            found.setdefault(cls.code, cls)
        pending.extend(cls.__subclasses__())
    return found


_BY_CODE = _classes()


def code_of(error: BaseException) -> str:
    """The code that stands for `error` on the wire. What a program's own classes say wins; out of memory is known."""
    if isinstance(error, InferloomError):
        return error.code or InferloomError.code or "internal_error"
    if isinstance(error, MemoryError) or "not enough memory" in str(error):
        return errors.OutOfMemory.code or "out_of_memory"
    return errors.LoadFailed.code or "model_load_failed"


def message_of(error: BaseException) -> str:
    """One sentence for `error`, whatever its class."""
    if isinstance(error, InferloomError):
        return error.message
    text = str(error).strip().splitlines()
    said = text[0] if text else type(error).__name__
    if code_of(error) == errors.OutOfMemory.code:
        return f"out of memory: {said}"
    return f"{type(error).__name__}: {said}" if text else said


def rebuild(code: str, message: str) -> InferloomError:
    """The error of `errors.py` that has this code, with the message as it was written."""
    cls = _BY_CODE.get(code, InferloomError)
    error = cls.__new__(cls)
    # not cls.__init__: some classes put words before the message, which has them already
    InferloomError.__init__(error, message)
    error.code = code
    return error
