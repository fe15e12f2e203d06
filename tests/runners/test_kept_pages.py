"""Cached prefixes outlive their worker, and KV pages go and come while it runs: through real workers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import torch
from factories.checkpoints import make_checkpoint
from worker_driving import becomes

from inferloom.catalog.catalog import Catalog
from inferloom.config.schema import Config, DriverConfig, ModelConfig, RuntimeConfig
from inferloom.errors import ContextLengthExceeded
from inferloom.formats import content
from inferloom.formats.checkpoint import Checkpoint
from inferloom.runners.base import WeightSource
from inferloom.runners.kept_pages import name_of
from inferloom.runners.local import LocalRunner
from inferloom.types import ExecuteBatch, Sampling
from inferloom.worker.kv_store import KvStore
from inferloom.worker.memory import pss
from inferloom.worker.pool import WorkerPool

MIB = 1 << 20
PROMPT = [(7 * place) % 250 + 3 for place in range(200)]

module = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool() -> AsyncIterator[WorkerPool]:
    """One for all: its forkserver imports torch."""
    pool = WorkerPool()
    await pool.start()
    yield pool
    await pool.stop()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERLOOM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return make_checkpoint(tmp_path / "tiny", "qwen3", dtype=torch.bfloat16, max_positions=1024)


@pytest.fixture
def store(tmp_path: Path) -> KvStore:
    return KvStore(memory=64 * MIB, disk=64 * MIB, shelves=(tmp_path / "ram", tmp_path / "disk"))


def model(checkpoint: Checkpoint, **fields: object) -> ModelConfig:
    driver = DriverConfig(type="native", options={"threads": 1})
    return ModelConfig(name="tiny", source=checkpoint.folder, driver=driver, **fields)  # type: ignore[arg-type]


async def loaded(
    pool: WorkerPool, checkpoint: Checkpoint, store: KvStore | None = None, **fields: object
) -> LocalRunner:
    runner = LocalRunner(model(checkpoint, **fields), pool, kv_budget_bytes=16 * MIB, kv_store=store)
    await runner.load_weights(None, WeightSource(source=checkpoint.folder))
    return runner


async def answer(runner: LocalRunner, prompt: list[int] = PROMPT, tokens: int = 16) -> tuple[list[int], int]:
    """The tokens, and how many of the prompt's were cached."""
    batch = ExecuteBatch(
        request_id="r",
        model="tiny",
        token_ids=prompt,
        sampling=Sampling(temperature=0.0),
        max_tokens=tokens,
        ignore_eos=True,
    )
    handle = await runner.execute(batch)
    async with asyncio.timeout(30):
        chunks = [chunk async for chunk in handle]
    usage = chunks[-1].usage
    assert usage is not None
    return [token for chunk in chunks for token in chunk.token_ids], usage.cached_tokens


async def known(checkpoint: Checkpoint) -> None:
    """A thread of the runner hashes what was never hashed."""
    await becomes(lambda: name_of(model(checkpoint), checkpoint) is not None)


async def kept_file(
    runner: LocalRunner, checkpoint: Checkpoint, store: KvStore
) -> tuple[list[int], str, Path]:
    """A loaded model's answer, and the name and the file that its pages are kept in now that it is unloaded."""
    first, cached = await answer(runner)
    assert cached == 0
    await known(checkpoint)
    assert await runner.spill() > 0
    await runner.close()
    name = name_of(model(checkpoint), checkpoint)
    assert name is not None
    path = store.find(name)
    assert path is not None
    return first, name, path


@module
async def test_a_reloaded_model_answers_the_same_from_kept_pages(
    pool: WorkerPool, checkpoint: Checkpoint, store: KvStore
) -> None:
    runner = await loaded(pool, checkpoint, store)
    first, _, _ = await kept_file(runner, checkpoint, store)
    await runner.load_weights(None, WeightSource(source=checkpoint.folder))
    again, cached = await answer(runner)
    assert (again, cached) == (first, 192)
    await runner.close()
    other = await loaded(pool, checkpoint, store)  # another runner of the same content
    assert await answer(other) == (first, 192)
    await other.close()


@module
async def test_a_reloaded_model_has_its_draft_models_pages_too(
    pool: WorkerPool, checkpoint: Checkpoint, store: KvStore, tmp_path: Path
) -> None:
    small = make_checkpoint(
        tmp_path / "small", "qwen3", dtype=torch.bfloat16, max_positions=1024, layers=1, seed=1
    )

    def with_draft() -> LocalRunner:
        return LocalRunner(
            model(checkpoint), pool, kv_budget_bytes=16 * MIB, kv_store=store, draft=model(small)
        )

    runner = with_draft()
    await runner.load_weights(None, WeightSource(source=checkpoint.folder))
    first, _ = await answer(runner)
    await becomes(lambda: name_of(model(checkpoint), checkpoint, (model(small), small)) is not None)
    assert await runner.spill() > 0
    await runner.close()
    other = with_draft()
    await other.load_weights(None, WeightSource(source=checkpoint.folder))
    assert await answer(other) == (first, 192)
    await other.close()


@module
@pytest.mark.parametrize("damage", ["flipped", "cut", "foreign"])
async def test_a_file_that_cannot_be_used_is_discarded_and_said(
    damage: str, pool: WorkerPool, checkpoint: Checkpoint, store: KvStore, caplog: pytest.LogCaptureFixture
) -> None:
    runner = await loaded(pool, checkpoint, store)
    first, name, path = await kept_file(runner, checkpoint, store)
    whole = path.read_bytes()
    path.write_bytes(
        {
            "flipped": whole[:-100] + bytes([whole[-100] ^ 255]) + whole[-99:],
            "cut": whole[: len(whole) // 2],
            "foreign": b"something else entirely" * 100,
        }[damage]
    )
    with caplog.at_level(logging.INFO):  # what a worker says is the gateway's to log
        await runner.load_weights(None, WeightSource(source=checkpoint.folder))
        await becomes(lambda: "are discarded" in caplog.text)
    assert await answer(runner) == (first, 0)
    assert store.find(name) is None
    await runner.close()


@module
async def test_a_damaged_page_is_computed_again_and_the_next_file_is_whole(
    pool: WorkerPool, checkpoint: Checkpoint, store: KvStore, caplog: pytest.LogCaptureFixture
) -> None:
    runner = await loaded(pool, checkpoint, store)
    first, _, path = await kept_file(runner, checkpoint, store)
    whole = path.read_bytes()
    path.write_bytes(whole[:5000] + bytes([whole[5000] ^ 255]) + whole[5001:])
    with caplog.at_level(logging.INFO):
        await runner.load_weights(None, WeightSource(source=checkpoint.folder))
        tokens, cached = await answer(runner)
        await becomes(lambda: "it is damaged" in caplog.text)
    assert tokens == first
    assert cached < 192
    await runner.spill()
    await runner.close()
    other = await loaded(pool, checkpoint, store)
    assert await answer(other) == (first, 192)
    await other.close()


def test_other_options_and_other_weights_have_other_names(checkpoint: Checkpoint, tmp_path: Path) -> None:
    changed = make_checkpoint(tmp_path / "other", "qwen3", dtype=torch.bfloat16, max_positions=1024, seed=1)
    assert name_of(model(checkpoint), checkpoint) is None  # unknown until it is hashed
    for one in (checkpoint, changed):
        content.digest([Path(name) for name in one.weights], lambda progress: None)
    configurations = [
        model(checkpoint),
        model(checkpoint, dtype="float16"),
        model(checkpoint, max_model_len=64),
    ]
    names = {name_of(one, checkpoint) for one in configurations}
    names.add(name_of(model(checkpoint), changed))
    assert None not in names and len(names) == 4
    pairs = [(model(changed), changed), (model(changed, dtype="float16"), changed)]
    drafted = {name_of(model(checkpoint), checkpoint, pair) for pair in pairs}
    assert None not in drafted and len(drafted | names) == 6
    copy = make_checkpoint(tmp_path / "copy", "qwen3", dtype=torch.bfloat16, max_positions=1024)
    content.digest([Path(name) for name in copy.weights], lambda progress: None)
    assert name_of(model(copy), copy) in names


@module
async def test_pages_go_and_come_and_the_card_says_so(pool: WorkerPool, checkpoint: Checkpoint) -> None:
    runner = await loaded(pool, checkpoint)
    card = runner.card()
    assert card is not None and card.max_model_len == 1024
    expected, _ = await answer(runner)
    assert await runner.resize_kv(8) == 8
    smaller = runner.card()
    assert smaller is not None
    assert (smaller.kv_pages, smaller.max_model_len) == (8, 256)
    assert smaller.kv_bytes == card.kv_bytes // card.kv_pages * 8
    assert (await answer(runner))[0] == expected
    with pytest.raises(ContextLengthExceeded):
        await answer(runner, [5] * 300)
    assert await runner.resize_kv(card.kv_pages + 100) == card.kv_pages  # its budget is all there is
    assert runner.card() == card
    await runner.close()


@module
async def test_a_grant_below_the_budget_can_grow_to_it(pool: WorkerPool, checkpoint: Checkpoint) -> None:
    runner = LocalRunner(model(checkpoint), pool, kv_budget_bytes=16 * MIB)
    runner.grant(2 * MIB)
    await runner.load_weights(None, WeightSource(source=checkpoint.folder))
    card = runner.card()
    assert card is not None and card.kv_bytes <= 2 * MIB
    pages = await runner.resize_kv(1 << 20)
    assert pages == 16 * MIB // (card.kv_bytes // card.kv_pages)
    await runner.close()


@module
async def test_memory_comes_back_when_pages_go(pool: WorkerPool, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(
        tmp_path / "wide", "llama", dtype=torch.bfloat16, max_positions=2048,
        hidden_size=256, num_attention_heads=8, num_key_value_heads=8,
    )  # fmt: skip
    runner = LocalRunner(model(checkpoint), pool, kv_budget_bytes=48 * MIB)
    await runner.load_weights(None, WeightSource(source=checkpoint.folder))
    card, pid = runner.card(), runner.pid
    assert card is not None and pid is not None
    for number in range(card.kv_pages * 32 // 1600):
        await answer(runner, [(number + place) % 250 + 3 for place in range(1600)], 1)
    full = pss(pid)
    pages = await runner.resize_kv(card.kv_pages // 8)
    less = pss(pid)
    assert full is not None and less is not None
    assert pages == card.kv_pages // 8
    assert full.bytes - less.bytes > 24 * MIB
    assert full.own - less.own > 24 * MIB
    await runner.close()


@module
async def test_a_worker_with_requests_under_way_keeps_nothing(
    pool: WorkerPool, checkpoint: Checkpoint, store: KvStore
) -> None:
    runner = await loaded(pool, checkpoint, store)
    batch = ExecuteBatch(request_id="r", model="tiny", token_ids=PROMPT, max_tokens=500, ignore_eos=True)
    handle = await runner.execute(batch)
    await handle.take()
    assert await runner.spill() == 0
    handle.cancel()
    await runner.close()
    assert await runner.spill() == 0


@module
async def test_the_catalog_keeps_what_it_unloads(
    pool: WorkerPool, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    config = Config(
        model=[model(checkpoint)], runtime=RuntimeConfig(kv_store_memory="0", kv_store_disk="64MiB")
    )
    catalog = Catalog(config, pool)
    found = []
    for _ in range(2):
        async with catalog.lease("tiny") as runner:
            assert isinstance(runner, LocalRunner)
            found.append(await answer(runner))
        await known(checkpoint)
        await catalog.unload("tiny")
    assert found == [(found[0][0], 0), (found[0][0], 192)]
    assert len(list((tmp_path / "cache" / "kv").iterdir())) == 1
    await catalog.close()


@module
async def test_an_unload_writes_the_pages_that_the_file_lacks(
    pool: WorkerPool, checkpoint: Checkpoint, store: KvStore, tmp_path: Path
) -> None:
    content.digest([Path(name) for name in checkpoint.weights], lambda progress: None)
    runner = await loaded(pool, checkpoint, store)
    await answer(runner)
    kept = await runner.spill()
    await runner.close()
    (file,) = (tmp_path / "ram").glob("*.kv")
    first = file.stat().st_ino

    again = await loaded(pool, checkpoint, store)
    await answer(again)  # with the same pages
    assert await again.spill() == kept and file.stat().st_ino == first
    await answer(again, PROMPT[::-1])  # and with others
    assert await again.spill() > kept and file.stat().st_ino == first
    await again.close()
    both = await loaded(pool, checkpoint, store)
    assert (await answer(both))[1] == (await answer(both, PROMPT[::-1]))[1] == 192
    await both.close()
