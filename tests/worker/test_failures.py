from __future__ import annotations

import pytest

from inferloom.errors import (
    ContextLengthExceeded,
    InferloomError,
    InvalidFormat,
    LoadFailed,
    OutOfMemory,
    SourceNotFound,
    Unsupported,
)
from inferloom.worker.failures import code_of, message_of, rebuild


@pytest.mark.parametrize(
    "error",
    [
        OutOfMemory("needs 3 GB, has 2 GB"),
        InvalidFormat("the header is cut short"),
        SourceNotFound("no such folder"),
        Unsupported("dtype float8", "no kernel"),
        ContextLengthExceeded("too long"),
    ],
)
def test_an_error_crosses_the_process_border_as_itself(error: InferloomError) -> None:
    again = rebuild(code_of(error), message_of(error))
    assert type(again) is type(error)
    assert (again.message, again.status, again.code) == (error.message, error.status, error.code)


def test_an_allocation_that_fails_is_out_of_memory() -> None:
    error = RuntimeError(
        "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory: you tried to allocate"
    )
    again = rebuild(code_of(error), message_of(error))
    assert isinstance(again, OutOfMemory)
    assert again.message.startswith("out of memory: ")


def test_a_librarys_error_is_a_failed_load_that_names_it() -> None:
    error = KeyError("model.embed_tokens.weight")
    again = rebuild(code_of(error), message_of(error))
    assert isinstance(again, LoadFailed)
    assert again.message == "KeyError: 'model.embed_tokens.weight'"


def test_an_unknown_code_is_still_an_error_with_its_message() -> None:
    assert rebuild("from_the_future", "words").message == "words"
