"""The decoder without an engine around it, beside `transformers` in the same run.

    python benchmarks/executor.py [FOLDER] [--threads 2] [--shape smollm2|qwen3]

prints tokens/s for decode at batch 1, decode at batch 16 (context 128 … 192) and prefill of 512, and the ratios. FOLDER is a
checkpoint in Hugging Face's layout; without it, one of the shape with random weights is made in a temporary folder.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as in a worker: idle threads give their core away soon

import torch
from checkpoints import make_qwen3_06b_shape, make_smollm2_shape

from inferloom.formats.checkpoint import Checkpoint
from inferloom.models.batch import PAGE_SIZE, Executor, RaggedBatch
from inferloom.models.loader import load

PROMPT, ANSWER = 128, 64


def ours(checkpoint: Checkpoint) -> Callable[[int, int, int], tuple[float, float]]:
    executor = load(checkpoint, activation_dtype="bfloat16")
    assert isinstance(executor, Executor)
    executor.allocate_kv(256)

    def run(users: int, prompt: int, answer: int) -> tuple[float, float]:
        """Seconds of prefill and of decode."""
        pages = -(-(prompt + answer) // PAGE_SIZE)
        tables = [list(range(i * pages, (i + 1) * pages)) for i in range(users)]
        ids = torch.randint(0, 200, (users, prompt)).tolist()
        began = time.perf_counter()
        batch = RaggedBatch(
            [token for row in ids for token in row],
            list(range(prompt)) * users,
            list(range(0, users * prompt + 1, prompt)),
            [prompt] * users,
            tables,
            [(i + 1) * prompt - 1 for i in range(users)],
        )
        tokens = executor.forward(batch).argmax(-1).tolist()
        middle = time.perf_counter()
        for position in range(prompt, prompt + answer):
            batch = RaggedBatch(
                tokens,
                [position] * users,
                list(range(users + 1)),
                [position + 1] * users,
                [table[: position // PAGE_SIZE + 1] for table in tables],
                list(range(users)),
            )
            tokens = executor.forward(batch).argmax(-1).tolist()
        return middle - began, time.perf_counter() - middle

    return run


def theirs(checkpoint: Checkpoint) -> Callable[[int, int, int], tuple[float, float]]:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=torch.bfloat16).eval()

    @torch.inference_mode()
    def run(users: int, prompt: int, answer: int) -> tuple[float, float]:
        ids = torch.randint(0, 200, (users, prompt))
        began = time.perf_counter()
        out = model(ids, use_cache=True, logits_to_keep=1)
        tokens = out.logits[:, -1].argmax(-1)
        middle = time.perf_counter()
        for _ in range(answer):
            out = model(tokens[:, None], past_key_values=out.past_key_values, use_cache=True)
            tokens = out.logits[:, -1].argmax(-1)
        return middle - began, time.perf_counter() - middle

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--shape", choices=("smollm2", "qwen3"), default="smollm2")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = _checkpoint(arguments.folder, arguments.shape, Path(scratch))
        runs = {"inferloom": ours(checkpoint), "transformers": theirs(checkpoint)}
        figures: dict[str, list[float]] = {name: [0.0] * 4 for name in runs}
        for _ in range(arguments.rounds):
            for name, run in runs.items():
                best = figures[name]
                prefill, _ = run(1, 512, 0)
                best[0] = max(best[0], 512 / prefill)
                _, decode = run(1, PROMPT, ANSWER // 2)
                best[1] = max(best[1], ANSWER // 2 / decode)
                prefill, decode = run(16, PROMPT, ANSWER)
                best[2] = max(best[2], 16 * ANSWER / decode)
                best[3] = max(best[3], 16 * ANSWER / (prefill + decode))
    print(f"{'tok/s':14}{'prefill 512':>14}{'decode 1':>12}{'decode 16':>12}{'16 users':>12}")
    for name, values in figures.items():
        print(f"{name:14}{values[0]:14.0f}{values[1]:12.1f}{values[2]:12.0f}{values[3]:12.0f}")
    ratios = [a / b for a, b in zip(figures["inferloom"], figures["transformers"], strict=True)]
    print(f"{'ratio':14}{ratios[0]:14.2f}{ratios[1]:12.2f}{ratios[2]:12.2f}{ratios[3]:12.2f}")


def _checkpoint(folder: Path | None, shape: str, scratch: Path) -> Checkpoint:
    if folder is None:
        return (
            make_smollm2_shape(scratch / "m") if shape == "smollm2" else make_qwen3_06b_shape(scratch / "m")
        )
    weights = tuple(str(path.resolve()) for path in sorted(folder.glob("*.safetensors")))
    return Checkpoint(
        source=str(folder),
        name=folder.name,
        folder=str(folder.resolve()),
        weights=weights,
        format="safetensors",
    )


if __name__ == "__main__":
    main()
