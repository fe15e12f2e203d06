"""llama.cpp as a contender: the xllamacpp wheel, which is built for AVX2 and chooses nothing wider while running."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from processes import free_port

from peers.contender import HttpContender, PipeContender
from peers.environments import environment

PACKAGE = "xllamacpp"
REQUIREMENTS = [f"{PACKAGE}==2026.10.11549"]
SCRIPT = Path(__file__).parent / "inside" / "xllama.py"
KINDS = {"bf16": "BF16", "int8": "Q8_0", "int4": "Q4_0"}


def server(file: Path, kind: str) -> HttpContender:
    """Its HTTP server. `kind` names the weights in the output."""
    port = free_port()
    command = [_python(), SCRIPT, file, "--port", str(port)]
    return HttpContender(f"llama.cpp {kind} HTTP", command, port=port, extras={"cache_prompt": False})


def in_process(file: Path, kind: str) -> PipeContender:
    # The class starts its listener in any case; a port of its own keeps two of them apart.
    return PipeContender(f"llama.cpp {kind}", [_python(), SCRIPT, file])


def build() -> str:
    """Which llama.cpp it is, and what instructions it was built with."""
    code = "import xllamacpp; print(xllamacpp.get_system_info())"
    done = subprocess.run([_python(), "-c", code], capture_output=True, text=True, check=True)
    features = re.findall(r"(\w+) = 1", done.stdout)
    return f"llama.cpp is {REQUIREMENTS[0]}, a wheel built for {' '.join(features)}"


def _python() -> Path:
    return environment(PACKAGE, REQUIREMENTS) / "python"
