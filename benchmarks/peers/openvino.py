"""OpenVINO GenAI as a contender, in process: it has no server of its own."""

from __future__ import annotations

from pathlib import Path

from peers.contender import PipeContender
from peers.environments import environment

REQUIREMENTS = ["openvino-genai==2026.4.1.0"]
SCRIPT = Path(__file__).parent / "inside" / "openvino_pipeline.py"


def in_process(folder: Path, weights: str) -> PipeContender:
    """`folder` as `conversions.openvino_folder` writes it. fp16 weights compute in bf16 where the processor can."""
    python = environment("openvino", REQUIREMENTS) / "python"
    return PipeContender(f"OpenVINO {weights}", [python, SCRIPT, folder])
