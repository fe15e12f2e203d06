"""Where there was no compiler: every model runs on torch's operators, and that is said once, with what to do."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from factories.checkpoints import make_checkpoint

from inferloom.config.schema import DriverConfig, ModelConfig
from inferloom.formats.prepare import prepare
from inferloom.runners.base import WeightSource
from inferloom.runners.local import LocalRunner
from inferloom.types import EmbedBatch, ExecuteBatch, Sampling
from inferloom.worker.pool import NATIVE, WorkerPool

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A module that hides the extension from whatever is imported after it."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "hide_extension.py").write_text(
        'import sys\nsys.modules["inferloom.kernels.native._native"] = None\n'
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        yield "hide_extension"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool(hidden: str) -> AsyncIterator[WorkerPool]:
    pool = WorkerPool(preload=(hidden, *NATIVE))
    await pool.start()
    yield pool
    await pool.stop()


async def loaded(pool: WorkerPool, folder: str, *, quantization: str = "none") -> LocalRunner:
    driver = DriverConfig(type="native", options={"threads": 1})
    runner = LocalRunner(
        ModelConfig(name="tiny", source=folder, driver=driver), pool, kv_budget_bytes=32 << 20
    )
    prepare(folder, quantization=quantization)
    await runner.load_weights(None, WeightSource(source=folder, quantization=quantization))
    return runner


async def test_every_width_answers_on_the_reference_operators_and_that_is_said_once(
    pool: WorkerPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("INFERLOOM_CACHE", str(tmp_path / "cache"))
    checkpoint = make_checkpoint(tmp_path / "tiny", "llama")
    ask = ExecuteBatch(
        request_id="r",
        model="tiny",
        token_ids=[5, 9, 14, 3, 77, 21],
        sampling=Sampling(temperature=0.8, top_p=0.9, seed=3),
        max_tokens=4,
        ignore_eos=True,
    )
    with caplog.at_level(logging.WARNING):
        for quantization in ("none", "int8", "int4"):
            runner = await loaded(pool, checkpoint.folder, quantization=quantization)
            chunks = [chunk async for chunk in await runner.execute(ask)]
            assert sum(len(chunk.token_ids) for chunk in chunks) == 4
            assert (card := runner.card()) is not None
            assert card.executor.startswith("reference (torch): the native operators were not built")
            await runner.close()
    said = [record for record in caplog.records if "native operators" in record.getMessage()]
    assert [record.levelname for record in said] == ["WARNING"]
    assert "install g++ 12 or newer" in said[0].getMessage()
    assert "torch's operators, several times slower" in said[0].getMessage()


async def test_embeddings_need_no_extension(pool: WorkerPool, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "tiny", "bert")
    runner = await loaded(pool, checkpoint.folder)
    answer = await runner.embed(EmbedBatch(request_id="r", model="tiny", inputs=["a", "b"]))
    assert len(answer.data) == 2 * 4 * answer.dimensions
    await runner.close()
