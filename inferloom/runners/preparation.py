"""Makes a source's checkpoint ready in a process of its own: downloads and conversions stay out of the gateway."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections import deque

import msgspec

from inferloom.config.schema import ModelConfig
from inferloom.errors import LoadFailed
from inferloom.formats.checkpoint import Checkpoint
from inferloom.formats.prepare import locate
from inferloom.runners.base import ProgressSink, WeightSource
from inferloom.types import LoadProgress
from inferloom.worker import attached
from inferloom.worker.failures import rebuild
from inferloom.worker.lineage import end_strays

log = logging.getLogger("inferloom.runners")

LINE_BYTES = 1 << 20


class _Error(msgspec.Struct):
    code: str
    message: str


class _Line(msgspec.Struct):
    """One line of what the process says: progress, something for the log, or at last one of the two ends."""

    stage: str = ""
    fraction: float | None = None
    detail: str = ""
    checkpoint: Checkpoint | None = None
    error: _Error | None = None
    log: str = ""


_decode = msgspec.json.Decoder(_Line).decode


async def checkpoint_of(source: WeightSource, *, progress: ProgressSink | None = None) -> Checkpoint:
    """What is on this machine already, else what `prepare` makes. Raises its errors."""
    found = await located(source)
    return found if found is not None else await prepare(source, progress=progress)


async def located(source: WeightSource) -> Checkpoint | None:
    """What is on this machine already; None where something must be made first. Raises `locate`'s errors."""
    return await asyncio.to_thread(
        locate, source.source, tokenizer=source.tokenizer, quantization=source.quantization
    )


async def draft_of(
    draft: ModelConfig | None, *, progress: ProgressSink | None, fetch: bool = True
) -> tuple[ModelConfig, Checkpoint] | None:
    """The model that drafts for another one, with its checkpoint; None where there is none, and, without `fetch`, where
    it is not ready on this machine."""
    if draft is None or draft.weights is None:
        return None
    source = WeightSource(source=draft.weights, quantization=draft.quantization)
    if fetch:
        return draft, await checkpoint_of(source, progress=progress)
    found = await located(source)
    return None if found is None else (draft, found)


async def prepare(source: WeightSource, *, progress: ProgressSink | None) -> Checkpoint:
    """Download, check, convert and pack. Raises the errors of `formats.prepare.prepare`.

    When cancelled, it returns after the process and everything it started are gone.
    """
    arguments = [source.source, *(("--tokenizer", source.tokenizer) if source.tokenizer else ())]
    if source.quantization != "none":
        arguments += ["--quantization", source.quantization]
    process = await asyncio.create_subprocess_exec(
        *attached.command("inferloom.formats.prepare", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=LINE_BYTES,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stderr is not None
    complaints = asyncio.create_task(_last_lines(process.stderr))
    try:
        end = await _follow(process.stdout, progress)
        await process.wait()
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await asyncio.shield(process.wait())
        end_strays(process.pid, known=set())
        said = await complaints
    if end.checkpoint is not None:
        return end.checkpoint
    if end.error is not None:
        raise rebuild(end.error.code, end.error.message)
    for line in said:
        log.warning("preparing %s: %s", source.source, line)
    why = said[-1] if said else f"exit status {process.returncode}"
    raise LoadFailed(f"preparing {source.source} ended without a result: {why}")


async def _follow(stdout: asyncio.StreamReader, progress: ProgressSink | None) -> _Line:
    end = _Line()
    async for text in stdout:
        try:
            line = _decode(text)
        except msgspec.DecodeError:
            continue  # something a library printed
        if line.checkpoint is not None or line.error is not None:
            end = line
        elif line.log:
            log.warning("%s", line.log)
        elif progress is not None and line.stage:
            progress(LoadProgress(line.stage, line.fraction, line.detail))
    return end


async def _last_lines(stderr: asyncio.StreamReader) -> list[str]:
    lines: deque[str] = deque(maxlen=20)
    while data := await stderr.read(1 << 16):  # not by lines: a progress bar has none
        lines.extend(line for line in data.decode(errors="replace").splitlines() if line.strip())
    return list(lines)
