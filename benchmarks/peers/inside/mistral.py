"""mistral.rs's `Runner` in process: `mistral.py [--keep N]`, in its own environment.

Reads one task a line, each `{"model": name, "folder": …, "file": … or null, "prompt": text, "tokens": n, "anew": bool}`, and
answers with `{"seconds": s, "loaded": whether it had to be}`. A runner is what was asked for, loaded if it is not: with
`anew` it is dropped first, and above N runners the one that was used longest ago is.
"""

from __future__ import annotations

import argparse
import gc
from typing import Any

import mistralrs
from loop import answer_tasks, protocol


class Runners:
    """The runners that are loaded, the longest unused first."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._loaded: dict[str, Any] = {}

    def drop(self, model: str) -> None:
        if model in self._loaded:
            del self._loaded[model]
            gc.collect()

    def get(self, task: dict[str, Any]) -> tuple[Any, bool]:
        """The runner, and whether it was loaded for that."""
        runner = self._loaded.pop(task["model"], None)
        loads = runner is None
        if runner is None:
            while len(self._loaded) >= self._keep:
                self.drop(next(iter(self._loaded)))
            runner = mistralrs.Runner(which=which(task), token_source="none")
        self._loaded[task["model"]] = runner
        return runner, loads


def which(task: dict[str, Any]) -> Any:
    if task["file"] is None:
        return mistralrs.Which.Plain(model_id=task["folder"])
    return mistralrs.Which.GGUF(quantized_model_id=task["folder"], quantized_filename=task["file"])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--keep", type=int, default=1)
    runners = Runners(parser.parse_args().keep)
    answers = protocol()

    def complete(task: dict[str, Any]) -> dict[str, object]:
        if task["anew"]:
            runners.drop(task["model"])
        runner, loads = runners.get(task)
        request = mistralrs.CompletionRequest(
            model="default",
            prompt=task["prompt"],
            max_tokens=task["tokens"],
            temperature=0.0,
            ignore_eos=True,
        )
        made = runner.send_completion_request(request).usage.completion_tokens
        assert made == task["tokens"], f"{made} tokens instead of {task['tokens']}"
        return {"loaded": loads}

    answer_tasks(complete, answers)


if __name__ == "__main__":
    main()
