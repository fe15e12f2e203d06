"""Our engine in process: `own_engine.py SOURCE SCHEME` (none, int8 or int4)."""

from __future__ import annotations

import sys

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
    """The model as the worker loads it."""
    torch.set_num_threads(THREADS)
    torch.set_grad_enabled(False)
    executor = load(
        prepare(source, quantization=scheme),
        dtype="bfloat16" if scheme == "none" else "auto",
        activation_dtype="bfloat16",
    )
    assert isinstance(executor, Executor)
    print(f"executor: {type(executor).__name__}", file=sys.stderr)
    return executor


def main() -> None:
    answers = protocol()
    engine = Engine(load_executor(*sys.argv[1:]), pages=PAGES, prefix_cache=False, speculative_tokens=0)

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
