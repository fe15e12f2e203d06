"""The extension module `_native`: whether it is there, why not, and which instruction set it runs.

It is built when Inferloom is installed where there is a C++ compiler; without it everything runs on the reference operators.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import platform
import sys
from types import ModuleType

from inferloom.errors import ConfigError

_NOT_BUILT = (
    "the native operators were not built: install g++ 12 or newer, then install inferloom again"
    " (`pip install --no-cache-dir --no-deps --force-reinstall inferloom`, or `make build` in a checkout)"
)


def _share_openmp() -> None:
    """Where torch's own copy of libgomp goes by another name (wheels may carry one with a hash in it), its symbols are made
    visible to all, so that the extension binds to them and not to those of a second runtime with threads of its own."""
    try:
        with open("/proc/self/maps") as maps:
            loaded = {line.split(maxsplit=5)[5].strip() for line in maps if "libgomp" in line}
    except OSError:
        return
    if len(loaded) == 1:
        ctypes.CDLL(loaded.pop(), mode=ctypes.RTLD_GLOBAL)


@functools.cache
def _attempt() -> tuple[ModuleType | None, str]:
    """The module, or None and the reason."""
    _share_openmp()
    try:
        return importlib.import_module("inferloom.kernels.native._native"), ""
    except ModuleNotFoundError:
        return None, _NOT_BUILT
    except ImportError as error:
        return (
            None,
            f"the native operators cannot be loaded: {error}; install inferloom again, so that they are built here",
        )


def available() -> bool:
    """Whether the native operators can be used in this process."""
    return _attempt()[0] is not None


def reason() -> str:
    """Why they are not available, and what to do about it; empty where they are."""
    return _attempt()[1]


def load() -> ModuleType:
    """The extension module. Raises ConfigError with `reason()` where there is none."""
    module, why = _attempt()
    if module is None:
        raise ConfigError(why)
    return module


def isa() -> str:
    """The instruction set in use: portable, avx2, avx512 or avx512_vnni_bf16; INFERLOOM_ISA forces one.

    Raises ConfigError where there is no extension, or where INFERLOOM_ISA names what this processor or build has not.
    """
    try:
        return str(load().isa())
    except RuntimeError as error:
        raise ConfigError(str(error)) from error


def describe() -> str:
    """One line for a log."""
    if not available():
        return reason()
    return f"native operators, {isa()} ({platform.machine()}, Python {sys.version_info.major}.{sys.version_info.minor})"
