"""The engines that `engine.py` compares, each in a process of its own, all behind one question:

how many seconds does it take to complete these prompts (token ids), `tokens` tokens each?

A contender's process reads `{"prompts": [[…], …], "tokens": n}` lines and answers each with `{"seconds": s}`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import urllib.request
from abc import ABC, abstractmethod
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from peers.inside.loop import protocol, serve

Prompts = list[list[int]]
PAGES = 512  # of 32 tokens: 16 requests of 1,024 tokens
REQUESTS = 16  # at a time


class Contender(ABC):
    """`load` happens outside the measurement; `complete` is what is timed."""

    def __init__(self) -> None:
        self.stack = ExitStack()

    @abstractmethod
    def load(self, checkpoint: str, threads: int) -> None: ...

    @abstractmethod
    def complete(self, prompts: Prompts, tokens: int) -> None:
        """Complete every prompt with exactly `tokens` tokens, greedily, end tokens notwithstanding."""

    def close(self) -> None:
        """Stop what `load` started."""
        self.stack.close()


class OwnEngine(Contender):
    """Our engine alone, driven step by step as the worker's loop does."""

    def load(self, checkpoint: str, threads: int) -> None:
        import torch

        from inferloom.engine.engine import Engine
        from inferloom.formats.prepare import prepare
        from inferloom.models.batch import Executor
        from inferloom.models.loader import load

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        executor = load(
            prepare(checkpoint),
            dtype="bfloat16",
            activation_dtype="bfloat16",
            device="cpu",
            max_model_len=None,
        )
        assert isinstance(executor, Executor)
        self._engine = Engine(executor, pages=PAGES, prefix_cache=False)

    def complete(self, prompts: Prompts, tokens: int) -> None:
        from inferloom.engine.messages import Generate, SamplingSpec

        for number, prompt in enumerate(prompts):
            spec = SamplingSpec(temperature=0.0)
            self._engine.submit(Generate(id=number, prompt=prompt, max_tokens=tokens, sampling=spec))
        made = 0
        while self._engine.has_work:
            made += sum(len(sequence.tokens) for sequence in self._engine.step())
        assert made == tokens * len(prompts), f"{made} tokens instead of {tokens * len(prompts)}"


class OwnServer(Contender):
    """Our server over HTTP: gateway, worker and engine."""

    def load(self, checkpoint: str, threads: int) -> None:
        from processes import INFERLOOM, free_port, serving

        port = free_port()
        model = f"{checkpoint},name=bench,dtype=bfloat16,threads={threads},prefix_cache=false"
        command = [*INFERLOOM, "serve", "-m", model, "--port", str(port), "--log-level", "warning"]
        server = self.stack.enter_context(serving(command, port=port, health="/ready"))
        self._url = server.url + "/v1/completions"

    def complete(self, prompts: Prompts, tokens: int) -> None:
        failures: list[str] = []

        def one(prompt: list[int]) -> None:
            body = {
                "model": "bench",
                "prompt": prompt,
                "max_tokens": tokens,
                "temperature": 0,
                "ignore_eos": True,
            }
            request = urllib.request.Request(
                self._url, json.dumps(body).encode(), headers={"content-type": "application/json"}
            )
            try:
                with urllib.request.urlopen(request) as response:
                    made = json.load(response)["usage"]["completion_tokens"]
                if made != tokens:
                    failures.append(f"{made} tokens instead of {tokens}")
            except OSError as error:
                failures.append(str(error))

        threads = [threading.Thread(target=one, args=(prompt,)) for prompt in prompts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures, failures[0]


class Transformers(Contender):
    """`model.generate`: one static batch (the prompts of a batch are of one length here: nothing is padded)."""

    attention = "sdpa"

    def load(self, checkpoint: str, threads: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        from inferloom.formats.prepare import prepare

        logging.set_verbosity_error()
        torch.set_num_threads(threads)
        self._torch = torch
        folder = prepare(checkpoint).folder
        self._model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.bfloat16, attn_implementation=self.attention
        ).eval()
        self._model.generation_config.eos_token_id = None
        self._model.generation_config.pad_token_id = 0

    def complete(self, prompts: Prompts, tokens: int) -> None:
        with self._torch.inference_mode():
            made = self._model.generate(
                self._torch.tensor(prompts), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False
            )
        assert made.shape[1] == len(prompts[0]) + tokens


class TransformersContinuous(Transformers):
    """`model.generate_batch`: transformers' own continuous batching over paged KV."""

    def complete(self, prompts: Prompts, tokens: int) -> None:
        from transformers import GenerationConfig
        from transformers.generation import ContinuousBatchingConfig

        made = self._model.generate_batch(
            prompts,
            generation_config=GenerationConfig(
                max_new_tokens=tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
            ),
            # Said in full, or the manager that the first call makes is sized for that call's single request.
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=32,
                num_blocks=PAGES,
                max_batch_tokens=2048,
                max_requests_per_batch=REQUESTS,
                allow_block_sharing=False,
            ),
            persistent_manager=True,
            warmup=False,
        )
        count = sum(len(output.generated_tokens) for output in made.values())
        assert count == tokens * len(prompts), f"{count} tokens instead of {tokens * len(prompts)}"


CONTENDERS: dict[str, type[Contender]] = {
    "inferloom engine": OwnEngine,
    "inferloom HTTP": OwnServer,
    "transformers generate": Transformers,
    "transformers continuous": TransformersContinuous,
}


class Remote:
    """A contender in its own process, as the orchestrating side sees it."""

    def __init__(self, name: str, checkpoint: str, threads: int, log: Path) -> None:
        self.name = name
        self._log = log
        self._process = subprocess.Popen(
            [sys.executable, __file__, name, checkpoint, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
        )
        self._answer()

    def seconds(self, prompts: Prompts, tokens: int) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompts": prompts, "tokens": tokens}) + "\n")
        self._process.stdin.flush()
        return float(self._answer()["seconds"])

    def close(self) -> None:
        """End the process: its input ends, so it leaves its loop and stops what it started."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended; see {self._log}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def main() -> None:
    name, checkpoint, threads = sys.argv[1:]
    answers = protocol()
    contender = CONTENDERS[name]()
    contender.load(checkpoint, int(threads))
    serve(contender.complete, answers)
    contender.close()


if __name__ == "__main__":
    main()
