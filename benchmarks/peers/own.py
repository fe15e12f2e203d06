"""Inferloom as a contender: its server over HTTP, and its engine in process (`inside/own_engine.py`)."""

from __future__ import annotations

import sys
from pathlib import Path

from processes import INFERLOOM, free_port

from peers.contender import THREADS, HttpContender, PipeContender

INSIDE = Path(__file__).parent / "inside"
SCHEMES = {"bf16": "none", "int8": "int8", "int4": "int4"}  # our name of each width


def server(source: str, width: str | None) -> HttpContender:
    """`inferloom serve` with one model. `width`: bf16, int8 or int4; None leaves the weights as they are stored."""
    model = f"{source},name=bench,threads={THREADS},prefix_cache=false,speculation=off"
    if width == "bf16":
        model += ",dtype=bfloat16"
    elif width is not None:
        model += f",quantization={SCHEMES[width]}"
    port = free_port()
    command = [*INFERLOOM, "serve", "-m", model, "--port", str(port), "--log-level", "warning"]
    name = f"inferloom {width or 'as stored'} HTTP"
    return HttpContender(name, command, port=port, health="/ready")


def in_process(source: str, width: str) -> PipeContender:
    """The engine driven step by step, as the worker's loop does."""
    return PipeContender(
        f"inferloom {width}", [sys.executable, INSIDE / "own_engine.py", source, SCHEMES[width]]
    )
