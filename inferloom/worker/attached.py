"""Runs a module as a program that goes when its parent goes, with everything it started.

`python -m inferloom.worker.attached PARENT MODULE ARGUMENT…`; to be started in a session of its own.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from types import FrameType

from inferloom.worker.lineage import die_with


def command(module: str, *arguments: str) -> list[str]:
    """The command line that runs `module` attached to the calling process."""
    return [sys.executable, "-m", __name__, str(os.getpid()), module, *arguments]


def main() -> None:
    parent, module, *arguments = sys.argv[1:]
    signal.signal(signal.SIGTERM, _end_group)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with(int(parent), how=signal.SIGTERM)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _end_group(number: int, frame: FrameType | None) -> None:
    os.killpg(os.getpgid(0), signal.SIGKILL)


if __name__ == "__main__":
    main()
