"""Where the native operators were not built their tests are not collected, and the head of the report says why."""

from __future__ import annotations

import pytest

from inferloom.kernels.native import library

collect_ignore_glob = [] if library.available() else ["test_native_*.py"]


def pytest_report_header() -> str:
    return f"native operators: {library.isa() if library.available() else library.reason()}"


@pytest.fixture(params=library.load().isas() if library.available() else [])
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each instruction set of this machine in turn, forced."""
    monkeypatch.setenv("INFERLOOM_ISA", request.param)
    assert library.isa() == request.param
    return str(request.param)
