"""mistral.rs as a contender: its Python `Runner`, in process, since its wheel holds no server.

`Runner.unload_model` raises "model has no loader configuration" for every kind of weights, so a reload is a new runner.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peers.contender import PipeContender
from peers.environments import environment

PACKAGE = "mistralrs"
REQUIREMENTS = [f"{PACKAGE}==0.9.5"]
SCRIPT = Path(__file__).parent / "inside" / "mistral.py"


class Runners(PipeContender):
    """One process that holds up to `keep` runners and drops the longest unused one for the next."""

    def __init__(self, *, keep: int) -> None:
        python = environment(PACKAGE, REQUIREMENTS) / "python"
        super().__init__(f"mistral.rs keep {keep}", [python, SCRIPT, "--keep", str(keep)])

    def ask(self, name: str, weights: Path, prompt: str, *, tokens: int, anew: bool) -> float:
        """Seconds until `tokens` tokens are there, a load included where one is needed. `weights`: a checkpoint's folder or a
        GGUF file; `anew`: drop the runner of that name first."""
        folder, file = (weights, None) if weights.is_dir() else (weights.parent, weights.name)
        task = {
            "model": name,
            "folder": str(folder),
            "file": file,
            "prompt": prompt,
            "tokens": tokens,
            "anew": anew,
        }
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = self._answer()
        return float(answer["seconds"])
