"""The native driver in its worker, on tiny random checkpoints."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio
import torch
from factories.checkpoints import make_checkpoint
from worker_driving import becomes, gone

from inferloom.catalog.catalog import Catalog
from inferloom.catalog.lifecycle import State, Transition
from inferloom.config.schema import Config, DriverConfig, ModelConfig
from inferloom.errors import InvalidFormat, LoadFailed, WorkerDied
from inferloom.formats.checkpoint import Checkpoint
from inferloom.runners.base import RunHandle, WeightSource
from inferloom.runners.local import LocalRunner
from inferloom.testing import check_runner
from inferloom.types import Constraint, ExecuteBatch, Sampling, TokenChunk
from inferloom.worker.pool import WorkerPool

PROMPT = [5, 9, 14, 3, 77, 21]


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool() -> AsyncIterator[WorkerPool]:
    """One for all: its forkserver imports torch."""
    pool = WorkerPool()
    await pool.start()
    yield pool
    await pool.stop()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return make_checkpoint(tmp_path / "tiny", "llama")


def model(checkpoint: Checkpoint, **options: object) -> ModelConfig:
    driver = DriverConfig(type="native", activation_dtype="float32", options={"threads": 1, **options})
    return ModelConfig(name="tiny", source=checkpoint.folder, driver=driver)


async def loaded(pool: WorkerPool, checkpoint: Checkpoint) -> LocalRunner:
    runner = LocalRunner(model(checkpoint), pool, kv_budget_bytes=32 << 20)
    await runner.load_weights(None, WeightSource(source=checkpoint.folder))
    return runner


def greedy(max_tokens: int = 16) -> ExecuteBatch:
    return ExecuteBatch(
        request_id="r",
        model="tiny",
        token_ids=PROMPT,
        sampling=Sampling(temperature=0.0),
        max_tokens=max_tokens,
        ignore_eos=True,
    )


async def read(handle: RunHandle) -> list[TokenChunk]:
    async with asyncio.timeout(60):
        return [chunk async for chunk in handle]


async def test_a_load_tells_the_seconds_of_its_stages(pool: WorkerPool, checkpoint: Checkpoint) -> None:
    runner = LocalRunner(model(checkpoint), pool, kv_budget_bytes=32 << 20)
    report = await runner.load_weights(None, WeightSource(source=checkpoint.folder))
    assert list(report.stages) == ["pack", "start", "map", "allocate", "warm"]
    assert all(seconds >= 0 for seconds in report.stages.values())
    assert sum(report.stages.values()) <= report.seconds
    await runner.close()


async def test_greedy_tokens_equal_those_of_transformers(pool: WorkerPool, checkpoint: Checkpoint) -> None:
    from transformers import AutoModelForCausalLM

    runner = await loaded(pool, checkpoint)
    chunks = await read(await runner.execute(greedy()))
    reference = AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=torch.float32)
    ids = torch.tensor([PROMPT])
    for _ in range(16):
        ids = torch.cat([ids, reference(ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert [token for chunk in chunks for token in chunk.token_ids] == ids[0, len(PROMPT) :].tolist()
    await runner.close()


async def test_the_native_runner_passes_the_conformance_kit(pool: WorkerPool, checkpoint: Checkpoint) -> None:
    runner = await loaded(pool, checkpoint)
    await check_runner(runner)
    await runner.close()


async def test_a_constraint_holds(pool: WorkerPool, checkpoint: Checkpoint) -> None:
    runner = await loaded(pool, checkpoint)
    batch = ExecuteBatch(
        request_id="r",
        model="tiny",
        text="x",
        max_tokens=40,
        constraint=Constraint(kind="regex", value="[ab]{3}c"),
    )
    chunks = await read(await runner.execute(batch))
    assert re.fullmatch("[ab]{3}c", "".join(chunk.text for chunk in chunks))
    assert chunks[-1].finish_reason == "stop"
    await runner.close()


async def test_a_cancelled_run_gives_its_pages_back(pool: WorkerPool, checkpoint: Checkpoint) -> None:
    runner = await loaded(pool, checkpoint)
    handle = await runner.execute(greedy(max_tokens=400))
    await handle.take()
    handle.cancel()
    stats = await runner.ask_stats()
    assert (stats.running, stats.waiting) == (0, 0)
    flushed = await runner.flush()
    assert flushed.pages_free == flushed.pages_total
    await runner.close()


async def test_the_weights_are_mapped_and_not_copied(pool: WorkerPool, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(
        tmp_path / "wide", "llama", hidden_size=256, intermediate_size=2048, layers=4
    )
    size = _on_disk(Path(checkpoint.weights[0])) // 1024
    runner = await loaded(pool, checkpoint)
    await read(await runner.execute(greedy()))
    assert runner.pid is not None
    resident, private = _mapped(runner.pid, checkpoint.weights[0])
    assert resident > 0.8 * size
    assert private < 0.05 * size
    await runner.close()


def _on_disk(path: Path) -> int:
    """Bytes of a file, written out: pages of a file just made are dirty by themselves."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size


def _mapped(pid: int, path: str) -> tuple[int, int]:
    """KiB of the file that are resident in the process, and of these the private dirty ones."""
    resident = private = 0
    ours = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            ours = line.endswith(path)
        elif ours and line.startswith("Rss:"):
            resident += int(line.split()[1])
        elif ours and line.startswith("Private_Dirty:"):
            private += int(line.split()[1])
    return resident, private


def _cut(path: Path, *, by: int) -> None:
    os.truncate(path, path.stat().st_size - by)


async def _truncate(path: Path) -> None:
    await asyncio.to_thread(os.truncate, path, 4096)


async def _overwrite(path: Path) -> None:
    def write() -> None:
        with path.open("r+b") as file:
            file.seek(-64, os.SEEK_END)
            file.write(b"\x40" * 64)

    await asyncio.to_thread(write)


async def _touch(path: Path) -> None:
    os.utime(path, (1, 1))


@pytest.mark.parametrize("change", [_truncate, _overwrite, _touch])
async def test_a_worker_whose_weights_change_stops_with_that_reason(
    pool: WorkerPool, checkpoint: Checkpoint, change: Callable[[Path], asyncio.Future[None]]
) -> None:
    deaths: list[Exception] = []
    runner = LocalRunner(model(checkpoint), pool, kv_budget_bytes=32 << 20, on_death=deaths.append)
    await runner.load_weights(None, WeightSource(source=checkpoint.folder))
    pid = runner.pid
    assert pid is not None
    await change(Path(checkpoint.weights[0]))
    await becomes(lambda: bool(deaths))
    assert gone(pid)
    assert "weights file changed under the worker" in str(deaths[0])
    with pytest.raises(WorkerDied, match="weights file changed"):
        await runner.execute(greedy())


async def test_weights_replaced_by_rename_leave_the_worker_alone(
    pool: WorkerPool, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    runner = await loaded(pool, checkpoint)
    before = [chunk.token_ids for chunk in await read(await runner.execute(greedy()))]
    other = make_checkpoint(tmp_path / "other", "llama", seed=1)
    await asyncio.to_thread(os.replace, other.weights[0], checkpoint.weights[0])
    await runner.flush()
    assert [chunk.token_ids for chunk in await read(await runner.execute(greedy()))] == before
    await runner.close()


async def test_a_model_whose_weights_changed_is_loaded_again(
    pool: WorkerPool, checkpoint: Checkpoint
) -> None:
    config = Config(model=[model(checkpoint)])
    catalog = Catalog(config, pool)
    seen: list[Transition] = []
    catalog.observe(seen.append)
    await catalog.load("tiny")
    await _touch(Path(checkpoint.weights[0]))
    await becomes(lambda: catalog.status("tiny").loads == 2)
    assert [one.new for one in seen][3:] == [State.FAILED, State.LOADING, State.WARMING, State.READY]
    assert seen[3].reason is not None and "weights file changed" in seen[3].reason
    await catalog.close()


async def test_a_checkpoint_cut_short_is_an_invalid_format(pool: WorkerPool, checkpoint: Checkpoint) -> None:
    _cut(Path(checkpoint.weights[0]), by=100)
    with pytest.raises(InvalidFormat, match="invalid format"):
        await loaded(pool, checkpoint)
    assert pool.workers == []


async def test_several_devices_are_refused_and_none_is_ignored(
    pool: WorkerPool, checkpoint: Checkpoint
) -> None:
    config = ModelConfig(
        name="tiny", source=checkpoint.folder, driver=DriverConfig(type="native", device=["cuda:0", "cuda:1"])
    )
    with pytest.raises(
        LoadFailed, match="lists the devices cuda:0, cuda:1, but this version runs a model on one"
    ):
        await LocalRunner(config, pool).load_weights(None, WeightSource(source=checkpoint.folder))
    assert pool.workers == []


async def test_a_device_that_is_not_there_is_a_failed_load(pool: WorkerPool, checkpoint: Checkpoint) -> None:
    config = ModelConfig(
        name="tiny", source=checkpoint.folder, driver=DriverConfig(type="native", device=["cuda:7"])
    )
    with pytest.raises(LoadFailed, match="cuda:7 is not available"):
        await LocalRunner(config, pool).load_weights(None, WeightSource(source=checkpoint.folder))
