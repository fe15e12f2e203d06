"""What a worker takes when it is full, beside what was foretold from headers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch
from factories.checkpoints import Family, make_checkpoint
from worker_driving import Driven

from inferloom.engine.messages import SamplingSpec, Stats
from inferloom.formats.checkpoint import Checkpoint
from inferloom.formats.footprint import footprint_of
from inferloom.formats.prepare import prepare
from inferloom.types import Footprint
from inferloom.worker.memory import mapped, pss
from inferloom.worker.messages.job import WorkerJob
from inferloom.worker.messages.replies import Embedded
from inferloom.worker.messages.requests import Embed, Generate, GetStats
from inferloom.worker.pool import WorkerPool

MIB = 1 << 20
KV = 24 * MIB
PAGE = 32
SEQUENCES = 16
WIDE = {"hidden_size": 512, "intermediate_size": 1536, "num_attention_heads": 8, "vocab_size": 8000}


@pytest.fixture
async def natives() -> AsyncIterator[WorkerPool]:
    pool = WorkerPool()
    await pool.start()
    yield pool
    await pool.stop()


class Measured:
    """A worker whose every page was written and whose largest step was computed."""

    def __init__(self, *, footprint: Footprint, pages: int, own: int, weights: int) -> None:
        self.footprint = footprint
        self.own = own  # anonymous
        self.weights = weights  # mapped
        self.foretold = footprint.total(pages)
        self.foretold_own = self.foretold - footprint.weights

    def assert_close(self, name: str = "") -> None:
        self.assert_within(name)
        measured = self.own + self.weights
        assert measured >= 0.95 * self.foretold - 32 * MIB, self.told(name)

    def assert_within(self, name: str = "") -> None:
        measured = self.own + self.weights
        assert measured <= 1.05 * self.foretold + 32 * MIB, self.told(name)

    def told(self, name: str) -> str:
        return (
            f"{name} own {self.own / MIB:.1f} of {self.foretold_own / MIB:.1f}, "
            f"weights {self.weights / MIB:.1f} of {self.footprint.weights / MIB:.1f} MiB"
        )


def mapped_of(pid: int, checkpoint: Checkpoint) -> int:
    return sum(mapped(pid, str(Path(name).resolve())) for name in checkpoint.weights)


def size_of(checkpoint: Checkpoint) -> int:
    return sum(Path(name).stat().st_size for name in checkpoint.weights)


async def filled(pool: WorkerPool, checkpoint: Checkpoint, **options: Any) -> Measured:
    options = {"max_batch_size": SEQUENCES, **options}
    worker = await Driven.spawn(
        pool,
        WorkerJob(model="m", driver="native", checkpoint=checkpoint, kv_budget_bytes=KV, **options),
    )
    found = footprint_of(checkpoint, **options)
    worker.process.send(GetStats(1))
    pages = (await worker.hear(Stats)).pages_total
    length = min(512, PAGE * pages) - 8
    for number in range(-(-PAGE * pages // length) if pages else 0):  # every page is somebody's once
        prompt = [(7 * place + number) % 250 for place in range(length)]
        worker.process.send(Generate(100 + number, prompt, 2, SamplingSpec(temperature=0.0)))
    for number in range(-(-PAGE * pages // length) if pages else 0):
        await worker.finish(100 + number)
    if not found.kv_page:
        worker.process.send(Embed(2, [[2, *[40] * 100, 3]] * 128))
        await worker.hear(Embedded)
    memory = pss(worker.process.pid)
    assert memory is not None
    assert memory.bytes == memory.file + memory.anonymous
    measured = Measured(
        footprint=found,
        pages=pages,
        own=memory.own,
        weights=mapped_of(worker.process.pid, checkpoint),
    )
    await worker.process.stop()
    return measured


async def test_full_workers_take_what_was_foretold(natives: WorkerPool, tmp_path: Path) -> None:
    families: tuple[Family, ...] = ("llama", "gemma3", "gpt2", "qwen2_moe")
    for family in families:
        checkpoint = make_checkpoint(tmp_path / family, family, dtype=torch.bfloat16, layers=3, **WIDE)
        (await filled(natives, checkpoint)).assert_close(family)


async def test_copies_in_float32_are_foretold(natives: WorkerPool, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "m", "llama", dtype=torch.bfloat16, layers=3, **WIDE)
    (await filled(natives, checkpoint, activation_dtype="float32", max_batch_tokens=256)).assert_close()


async def test_a_fallback_model_and_an_encoder_stay_within(natives: WorkerPool, tmp_path: Path) -> None:
    fallback = make_checkpoint(tmp_path / "f", "cohere", dtype=torch.bfloat16, max_positions=512)
    (await filled(natives, fallback)).assert_within()
    sizes = {key: value for key, value in WIDE.items() if key != "vocab_size"}
    encoder = make_checkpoint(tmp_path / "e", "bert", dtype=torch.bfloat16, layers=3, **sizes)
    (await filled(natives, encoder)).assert_within()


async def test_the_starters_are_foretold_and_their_weights_to_the_page(natives: WorkerPool) -> None:
    smollm2, minilm = prepare("smollm2"), prepare("minilm")
    generating = await filled(natives, smollm2)
    generating.assert_close()
    assert (
        0 <= size_of(smollm2) - generating.footprint.weights <= 64 << 10
    )  # the header, and the copies of norms
    (await filled(natives, minilm)).assert_within()


def test_a_process_that_is_gone_has_no_memory() -> None:
    assert pss(0x7FFFFFFF) is None
    assert mapped(0x7FFFFFFF, "/nowhere") == 0
