"""The decoder without an engine around it: our native executor beside the reference one and `transformers`, in one run.

    python benchmarks/executor.py [FOLDER] [--weights FILE] [--threads 2] [--shape smollm2|qwen3] [--only native …]

prints tokens/s for prefill of 512, decode at batch 1 and 16 (context 128 … 192) and 16 users (128 tokens in, 64 out), the ratios, what
share of the memory's bandwidth decoding at batch 1 takes, where a native step's time goes, and what share of the output matrix a
greedy token needed exactly. FOLDER is a checkpoint in Hugging
Face's layout; without it, one of the shape with random weights is made in a temporary folder. FILE: other weights for it, such as
packed ones of the cache (`inferloom cache`).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as in a worker: idle threads give their core away soon

import torch
from checkpoints import make_qwen3_06b_shape, make_smollm2_shape

from inferloom.formats.checkpoint import Checkpoint
from inferloom.kernels.native import library
from inferloom.models.batch import PAGE_SIZE, Executor, RaggedBatch
from inferloom.models.loader import load
from inferloom.models.native import NativeDecoder

PROMPT, ANSWER = 128, 64


Run = Callable[[int, int, int], tuple[float, float]]


def executor_of(checkpoint: Checkpoint, name: str) -> Executor:
    executor = load(
        checkpoint, activation_dtype="bfloat16", executor="auto" if name == "native" else "reference"
    )
    assert isinstance(executor, Executor)
    executor.allocate_kv(256)
    return executor


def ours(executor: Executor) -> Run:
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
        tokens = best(batch)
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
            tokens = best(batch)
        return middle - began, time.perf_counter() - middle

    def best(batch: RaggedBatch) -> list[int]:
        found = executor.forward_best(batch)
        if found is None:
            found = executor.forward(batch).argmax(-1).tolist()
        return found

    return run


def theirs(checkpoint: Checkpoint) -> Run:
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


@dataclass
class Figures:
    """Tokens/s, the best of all rounds."""

    prefill: float = 0.0
    decode_1: float = 0.0
    decode_16: float = 0.0
    users_16: float = 0.0
    columns: tuple[str, ...] = field(
        default=("prefill 512", "decode 1", "decode 16", "16 users"), init=False, repr=False
    )

    @property
    def values(self) -> tuple[float, ...]:
        return (self.prefill, self.decode_1, self.decode_16, self.users_16)

    def round(self, run: Run) -> None:
        prefill, _ = run(1, 512, 0)
        self.prefill = max(self.prefill, 512 / prefill)
        _, decode = run(1, PROMPT, ANSWER // 2)
        self.decode_1 = max(self.decode_1, ANSWER // 2 / decode)
        prefill, decode = run(16, PROMPT, ANSWER)
        self.decode_16 = max(self.decode_16, 16 * ANSWER / decode)
        self.users_16 = max(self.users_16, 16 * ANSWER / (prefill + decode))


def main() -> None:
    names = ("native", "reference", "transformers")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--weights", type=Path, nargs="+", help="in place of the folder's *.safetensors")
    parser.add_argument("--shape", choices=("smollm2", "qwen3"), default="smollm2")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = _checkpoint(arguments.folder, arguments.weights, arguments.shape, Path(scratch))
        executors = {name: executor_of(checkpoint, name) for name in arguments.only if name != "transformers"}
        runs = {name: ours(executor) for name, executor in executors.items()}
        if "transformers" in arguments.only:
            runs["transformers"] = theirs(checkpoint)
        figures = {name: Figures() for name in runs}
        bandwidth = 0.0
        for _ in range(arguments.rounds):
            bandwidth = max(bandwidth, *library.load().memory_bandwidth(1 << 29, arguments.threads, 3))
            for name, run in runs.items():
                figures[name].round(run)
    first = next(iter(figures))
    print(f"{'tok/s':14}" + "".join(f"{column:>14}" for column in figures[first].columns))
    for name, found in figures.items():
        print(f"{name:14}" + "".join(f"{value:14.1f}" for value in found.values))
    for name, found in figures.items():
        if name != first:
            ratios = [a / b for a, b in zip(figures[first].values, found.values, strict=True)]
            print(f"{f'/ {name}':14}" + "".join(f"{ratio:14.2f}" for ratio in ratios))
    native = executors.get("native")
    if isinstance(native, NativeDecoder):
        _explain(native, native.card.token_bytes, figures["native"], bandwidth)


def _explain(native: NativeDecoder, size: int, figures: Figures, bandwidth: float) -> None:
    """What limits the native executor: its share of the bandwidth, and each stage's time."""
    read = size * figures.decode_1
    print(
        f"\n{native.card.executor}: decoding reads {size / 1e6:,.0f} MB of weights a token,"
        f" {read / 1e9:.1f} GB/s of {bandwidth / 1e9:.1f} ({read / bandwidth:.0%})"
    )
    run = ours(native)
    shapes = {"prefill 512": (1, 512, 0), "decode 1": (1, PROMPT, 16), "decode 16": (16, PROMPT, 16)}
    table: dict[str, dict[str, float]] = {}
    for name, (users, prompt, answer) in shapes.items():
        native.start_profile()
        run(users, prompt, 0)
        before = native.stop_profile()
        native.start_profile()
        run(users, prompt, answer)
        after, steps = native.stop_profile(), answer + 1
        table[name] = {
            stage: max(times) if not answer else (max(times) * steps - max(before[stage])) / answer
            for stage, times in after.items()
        }
    run(1, PROMPT, 1)
    print(f"of the output matrix {native.computed_share:.1%} was computed exactly for the last token")
    print(f"{'µs a step':14}" + "".join(f"{name:>14}" for name in table))
    for stage in table["decode 1"]:
        print(f"{stage:14}" + "".join(f"{table[name][stage]:14.0f}" for name in table))


def _checkpoint(folder: Path | None, files: list[Path] | None, shape: str, scratch: Path) -> Checkpoint:
    if folder is None:
        return (
            make_smollm2_shape(scratch / "m") if shape == "smollm2" else make_qwen3_06b_shape(scratch / "m")
        )
    weights = tuple(str(path.resolve()) for path in files or sorted(folder.glob("*.safetensors")))
    return Checkpoint(
        source=str(folder),
        name=folder.name,
        folder=str(folder.resolve()),
        weights=weights,
        format="safetensors",
    )


if __name__ == "__main__":
    main()
