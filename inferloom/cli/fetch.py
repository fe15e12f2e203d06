"""Making sources ready before they are served: one subprocess for each, its progress drawn as a bar.

Downloading and converting happen in a process of their own, because converting needs torch and this process
goes on as the gateway, which never has it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import IO, Any

import msgspec

from inferloom.config.schema import Config, ModelConfig
from inferloom.errors import InferloomError, SourceError, SourceNotFound
from inferloom.types import LoadProgress


def missing(config: Config) -> list[ModelConfig]:
    """The models that would have to be fetched or converted before they can load; lazy ones are left for later."""
    from inferloom.formats.prepare import locate

    return [
        model
        for model in config.model
        if model.weights is not None
        and not model.lazy
        and locate(model.weights, tokenizer=model.tok_model_id, quantization=model.quantization) is None
    ]


def fetch(models: Sequence[ModelConfig], *, stream: IO[str] | None = None) -> None:
    """Download, check and convert what `models` need, one after the other, with a progress bar on `stream`
    (stderr). Raises `SourceError` with the reason of the first that fails."""
    if not models:
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    console = Console(file=stream or sys.stderr)
    columns = (
        TextColumn("{task.fields[model]}"),
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[detail]}"),
    )
    with Progress(*columns, console=console) if console.is_terminal else nullcontext() as bar:
        for model in models:
            _prepare(model, bar, console)


def _prepare(model: ModelConfig, bar: Any, console: Any) -> None:
    assert model.weights is not None
    arguments = [sys.executable, "-m", "inferloom.formats.prepare", model.weights]
    if model.tok_model_id is not None:
        arguments += ["--tokenizer", model.tok_model_id]
    if model.quantization != "none":
        arguments += ["--quantization", model.quantization]
    task = bar.add_task("finding", total=1.0, model=model.name, detail="") if bar is not None else None
    stage = waits = ""
    # In a group of its own: Ctrl-C in a terminal reaches this process, which ends that one.
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, process_group=0) as process:
        assert process.stdout is not None
        try:
            last: dict[str, Any] = {}
            for line in process.stdout:
                last = _decoded(line)
                if "stage" not in last:
                    continue
                progress = msgspec.convert(last, LoadProgress)
                if bar is not None:
                    bar.update(
                        task,
                        description=progress.stage,
                        detail=progress.detail,
                        completed=progress.fraction or 0.0,
                        total=1.0 if progress.fraction is not None else None,
                    )
                elif progress.stage != stage or (progress.fraction is None and progress.detail != waits):
                    console.print(
                        f"{model.name}: {progress.stage} {progress.detail}".rstrip(),
                        highlight=False,
                        soft_wrap=True,
                    )
                stage = progress.stage
                waits = progress.detail if progress.fraction is None else waits
        except BaseException:
            process.terminate()
            raise
    if process.returncode == 0 and "checkpoint" in last:
        if bar is not None:
            bar.update(task, description="ready", detail="", completed=1.0, total=1.0)
        return
    raise _failure(model.name, last.get("error"))


def _decoded(line: str) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(line)
    except msgspec.DecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _failure(name: str, error: Any) -> InferloomError:
    if not isinstance(error, dict):
        return SourceError(f"making {name} ready failed; what was printed above says why")
    message, code = str(error.get("message")), str(error.get("code"))
    return SourceNotFound(message) if code == "source_not_found" else SourceError(message, code=code)
