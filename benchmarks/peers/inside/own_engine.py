"""Our engine in process: `own_engine.py SOURCE SCHEME` (none, int8 or int4)."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import torch
from loop import protocol, serve

from inferloom.engine.engine import Engine
from inferloom.engine.messages import Generate, SamplingSpec
from inferloom.formats.prepare import prepare
from inferloom.models.batch import Executor
from inferloom.models.loader import load

THREADS = 2
PAGES = 512  # of 32 tokens: 16 requests of 1,024 tokens


def load_executor(source: str, scheme: str) -> Executor:
    """The model as the worker loads it. Ends with a message where this version cannot quantise."""
    torch.set_num_threads(THREADS)
    torch.set_grad_enabled(False)
    options: dict[str, Any] = {"dtype": "bfloat16"}
    if scheme != "none":
        if "quantization" not in inspect.signature(load).parameters:
            raise SystemExit(f"this version loads no weights as {scheme}: `load` has no `quantization`")
        options = {"quantization": scheme}
    executor = load(prepare(source), activation_dtype="bfloat16", device="cpu", **options)
    assert isinstance(executor, Executor)
    return executor


def main() -> None:
    answers = protocol()
    engine = Engine(load_executor(*sys.argv[1:]), pages=PAGES, prefix_cache=False)

    def complete(prompts: list[list[int]], tokens: int) -> None:
        for number, prompt in enumerate(prompts):
            spec = SamplingSpec(temperature=0.0)
            engine.submit(Generate(id=number, prompt=prompt, max_tokens=tokens, sampling=spec))
        made = 0
        while engine.has_work:
            made += sum(len(sequence.tokens) for sequence in engine.step())
        assert made == tokens * len(prompts), f"{made} tokens instead of {tokens * len(prompts)}"

    serve(complete, answers)


if __name__ == "__main__":
    main()
