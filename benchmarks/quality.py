"""What quantisation costs in quality, on the chat starter: perplexity, divergence and agreement beside bf16.

    python benchmarks/quality.py [--tokens 50000] [--schemes int8,int4,int4-all]

The text ships with Python: docstrings of the standard library, and its licence. The weights of `smollm2` (a 4-bit GGUF) are written
once as a bf16 checkpoint, which is then served as it is, with int8 keys and values, and in each scheme, all in windows of 512 tokens. Columns: perplexity; mean KL
divergence in nats from bf16's distribution; how often both like the same token best. The last row is the GGUF file on its own
4-bit weights, beside the same weights in bf16: what 8-bit activations cost by themselves.
"""

from __future__ import annotations

import argparse
import ast
import math
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import torch
from figures import machine, table
from peers.environments import PEERS
from safetensors.torch import save_file
from tokenizers import Tokenizer

from inferloom.formats.checkpoint import Checkpoint
from inferloom.formats.layouts import PackedTensor, dequantise
from inferloom.formats.prepare import locate, prepare
from inferloom.formats.weights import open_weights
from inferloom.models.batch import PAGE_SIZE, Executor, KvDtype, RaggedBatch
from inferloom.models.loader import load

WINDOW = 512


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=50_000)
    parser.add_argument("--schemes", default="int8,int4,int4-all")
    given = parser.parse_args()
    torch.set_num_threads(2)
    starter = locate("smollm2") or prepare("smollm2")
    folder = str(as_bf16(starter))
    executors = {"bf16": executor_of(prepare(folder))}
    executors["bf16, int8 keys and values"] = executor_of(prepare(folder), kv_dtype="int8")
    for scheme in given.schemes.split(","):
        executors[scheme] = executor_of(prepare(folder, quantization=scheme))
    executors["the GGUF's own"] = executor_of(starter)
    tallies = {name: Tally() for name in executors}
    for window in windows(Path(starter.folder) / "tokenizer.json", given.tokens):
        targets = torch.tensor(window[1:])
        base = None
        for name, executor in executors.items():
            scores = torch.log_softmax(logits(executor, window)[:-1], dim=-1)
            base = scores if base is None else base
            tallies[name].add(scores, base, targets)
    print(machine())
    print(f"{tallies['bf16'].count:,} tokens of the standard library's docstrings and licence, smollm2\n")
    rows = [
        (name, f"{executors[name].card.weight_bytes / 1e6:,.0f}", *tally.cells())
        for name, tally in tallies.items()
    ]
    print(table(["weights", "MB", "perplexity", "KL to bf16", "same first choice"], rows))


class Tally:
    """Sums over tokens."""

    def __init__(self) -> None:
        self.count = 0
        self.surprise = self.divergence = self.agreed = 0.0

    def add(self, scores: torch.Tensor, base: torch.Tensor, targets: torch.Tensor) -> None:
        self.count += len(targets)
        self.surprise -= float(scores.gather(1, targets[:, None]).sum())
        self.divergence += float((base.exp() * (base - scores)).sum())
        self.agreed += int((scores.argmax(1) == base.argmax(1)).sum())

    def cells(self) -> tuple[str, str, str]:
        return (
            f"{math.exp(self.surprise / self.count):.3f}",
            f"{self.divergence / self.count:.5f}",
            f"{self.agreed / self.count:.4f}",
        )


def as_bf16(starter: Checkpoint) -> Path:
    """The starter's weights as a bf16 safetensors checkpoint, written once."""
    folder = PEERS / "checkpoints" / "smollm2-bf16"
    if (folder / "model.safetensors").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    for path in Path(starter.folder).glob("*.json"):
        shutil.copy(path, folder)
    weights = open_weights(starter)
    tensors = {}
    for name in weights:
        value = weights[name]
        floats = dequantise(value) if isinstance(value, PackedTensor) else value
        tensors[name] = floats.to(torch.bfloat16).contiguous()
    partial = folder / "partial"
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.rename(folder / "model.safetensors")
    return folder


def executor_of(checkpoint: Checkpoint, kv_dtype: KvDtype = "auto") -> Executor:
    executor = load(checkpoint, activation_dtype="bfloat16", kv_dtype=kv_dtype)
    assert isinstance(executor, Executor)
    executor.allocate_kv(WINDOW // PAGE_SIZE)
    return executor


def logits(executor: Executor, window: list[int]) -> torch.Tensor:
    rows = len(window)
    pages = list(range(-(-rows // PAGE_SIZE)))
    batch = RaggedBatch(window, list(range(rows)), [0, rows], [rows], [pages], list(range(rows)))
    return executor.forward(batch).clone()


def windows(tokenizer_json: Path, tokens: int) -> Iterator[list[int]]:
    tokenizer = Tokenizer.from_file(str(tokenizer_json))
    window: list[int] = []
    for text in texts():
        window += tokenizer.encode(text, add_special_tokens=False).ids
        while len(window) >= WINDOW and tokens > 0:
            yield window[:WINDOW]
            window, tokens = window[WINDOW:], tokens - WINDOW
        if tokens <= 0:
            return


def texts() -> Iterator[str]:
    """The licence where the installation has it, then docstrings of modules and classes, file by file in order."""
    library = Path(sysconfig.get_path("stdlib"))
    licence = library / "LICENSE.txt"
    if licence.is_file():
        yield licence.read_text(encoding="utf-8")
    for path in sorted(library.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
        nodes = [
            node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        ]
        documented = [text for node in nodes if (text := ast.get_docstring(node)) is not None]
        if documented:
            yield "\n\n".join(documented) + "\n\n"


if __name__ == "__main__":
    main()
