"""Models whose source is gone, or cannot be run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from factories.checkpoints import make_checkpoint

from inferloom.catalog.catalog import Catalog
from inferloom.catalog.lifecycle import State, Transition
from inferloom.config.schema import Config, DriverConfig, ModelConfig
from inferloom.errors import InferloomError, InvalidFormat, SourceNotFound, Unsupported
from inferloom.runners.local import LocalRunner
from inferloom.types import ExecuteBatch
from inferloom.worker.pool import WorkerPool


def serving(pool: WorkerPool, source: Path | str | None) -> Catalog:
    """A catalog of one lazy dummy with that source."""
    source = None if source is None else str(source)
    model = ModelConfig(name="a", lazy=True, source=source, driver=DriverConfig(type="dummy"))
    return Catalog(Config(model=[model]), pool)


async def ask(catalog: Catalog) -> None:
    async with catalog.lease("a") as runner:
        handle = await runner.execute(ExecuteBatch(request_id="r", model="a", text="x"))
        assert [chunk async for chunk in handle]


async def test_a_folder_that_vanishes_is_not_taken_for_a_hub_repository(
    pool: WorkerPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_checkpoint(tmp_path / "owner" / "model", "llama")
    monkeypatch.chdir(tmp_path)
    catalog = serving(pool, "owner/model")
    await ask(catalog)
    await catalog.unload("a")
    assert catalog.status("a").word == "unloaded"
    shutil.rmtree(tmp_path / "owner")
    assert catalog.status("a").word == "no_loader_config"
    with pytest.raises(SourceNotFound, match="there is no file or folder"):
        await catalog.reload("a")
    assert catalog.status("a").word == "no_loader_config"
    await catalog.close()


async def test_a_source_that_is_gone_is_not_tried_twice_and_has_its_word(
    pool: WorkerPool, tmp_path: Path
) -> None:
    catalog = serving(pool, tmp_path / "nothing")
    seen: list[Transition] = []
    catalog.observe(seen.append)
    with pytest.raises(InferloomError):
        await ask(catalog)
    assert [transition.new for transition in seen] == [State.LOADING, State.FAILED]
    assert catalog.status("a").word == "no_loader_config"
    await catalog.close()


async def test_a_checkpoint_that_cannot_be_run_is_an_invalid_format_and_no_fault_of_the_request(
    pool: WorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: Any) -> Any:
        raise Unsupported("the architecture T5", "this engine runs others")

    monkeypatch.setattr(LocalRunner, "load_weights", refuse)
    catalog = serving(pool, None)
    seen: list[Transition] = []
    catalog.observe(seen.append)
    with pytest.raises(InvalidFormat, match="invalid format: the architecture T5 is not supported") as caught:
        await ask(catalog)
    assert caught.value.status == 503
    assert [transition.new for transition in seen] == [State.LOADING, State.FAILED]
    await catalog.close()
