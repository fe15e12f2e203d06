"""Time per decode step over the batch (1 … 64) and over the context (128 … 16k), in process, as tables and SVG; beside
the growth of the time that of the bytes which a step reads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import median

from checkpoints import QWEN3_06B
from figures import table
from peers import conversions
from peers.contender import LOGS
from peers.environments import PEERS, ROOT
from peers.own import INSIDE, SCHEMES
from rows import WIDTHS, weight_bytes

from inferloom.cli.picture import Chart, Line

BATCHES = (1, 2, 4, 8, 16, 32, 64)
BATCH_CONTEXT = 128
CONTEXTS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384)
# Of a token of context: keys and values of all layers, in bfloat16.
KV_BYTES = 4 * QWEN3_06B["num_hidden_layers"] * QWEN3_06B["num_key_value_heads"] * QWEN3_06B["head_dim"]
PICTURE = PEERS / "curve.svg"

Steps = dict[str, list[float]]  # "batch,context" → seconds, round by round


def run() -> str:
    """The `curve` row, as Markdown; the picture lies under `.peers/`."""
    found = {width: steps for width in WIDTHS if (steps := _measured(width)) is not None}
    if not found:
        return "### curve\n\nno width could be measured"
    by_batch = [
        [str(batch), *_cells(found, batch, BATCH_CONTEXT), *_growth(found, batch, BATCH_CONTEXT)]
        for batch in BATCHES
    ]
    by_context = [
        [str(context), *_cells(found, 1, context), *_growth(found, 1, context)] for context in CONTEXTS
    ]
    titles = [
        *(f"{width}, ms" for width in found),
        *(f"{width}, times the first: time, bytes" for width in found),
    ]
    PICTURE.write_text(Chart.stacked(_charts(found)))
    parts = [
        "### curve",
        f"One step over the batch, context {BATCH_CONTEXT}:",
        table(["batch", *titles], by_batch),
    ]
    parts += ["One step of one sequence over its context:", table(["context", *titles], by_context)]
    return "\n\n".join([*parts, f"picture: {PICTURE.relative_to(ROOT)}"])


def _measured(width: str) -> Steps | None:
    """Seconds per step of every point, by `inside/own_steps.py` in a process of its own."""
    points = [(batch, BATCH_CONTEXT) for batch in BATCHES] + [(1, context) for context in CONTEXTS[1:]]
    command = [sys.executable, INSIDE / "own_steps.py", conversions.checkpoint(), SCHEMES[width]]
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"curve-{width}.log"
    print(f"time per step, {width}", file=sys.stderr, flush=True)
    with log.open("w") as errors:
        done = subprocess.run(
            command, input=json.dumps(points), stdout=subprocess.PIPE, stderr=errors, text=True
        )
    if done.returncode:
        print(f"{width} left out: {_last_line(log)}", file=sys.stderr, flush=True)
        return None
    steps: Steps = json.loads(done.stdout.splitlines()[-1])
    return steps


def _cells(found: dict[str, Steps], batch: int, context: int) -> list[str]:
    return [f"{median(steps[f'{batch},{context}']) * 1e3:,.1f}" for steps in found.values()]


def _growth(found: dict[str, Steps], batch: int, context: int) -> list[str]:
    """Of the time within a round, its median; and of what a step reads: the weights once, keys and values of each sequence."""
    cells = []
    for width, steps in found.items():
        pairs = zip(steps[f"{batch},{context}"], steps[f"1,{BATCH_CONTEXT}"], strict=True)
        size = weight_bytes(width, whole=True)
        reads = [size + of * KV_BYTES for of in (batch * context, BATCH_CONTEXT)]
        cells.append(f"{median(point / first for point, first in pairs):.2f}, {reads[0] / reads[1]:.2f}")
    return cells


def _charts(found: dict[str, Steps]) -> list[Chart]:
    def lines(points: list[tuple[int, int]], xs: tuple[int, ...]) -> list[Line]:
        return [
            Line(width, xs, [median(steps[f"{batch},{context}"]) * 1e3 for batch, context in points])
            for width, steps in found.items()
        ]

    batches = lines([(batch, BATCH_CONTEXT) for batch in BATCHES], BATCHES)
    contexts = lines([(1, context) for context in CONTEXTS], CONTEXTS)
    return [
        Chart(f"time per step, context {BATCH_CONTEXT}", "batch", "ms", batches, log_x=True, log_y=True),
        Chart("time per step, batch 1", "context", "ms", contexts, log_x=True, log_y=True),
    ]


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return lines[-1] if lines else "it said nothing"
