"""What every room's tests share: the starter models, fetched once and kept beside the repository's own files."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvloop
from hypothesis import HealthCheck, settings

from inferloom.formats.checkpoint import Checkpoint
from inferloom.formats.prepare import prepare

# A busy machine is slow, and that is no failure.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("soak", settings.get_profile("suite"), max_examples=300)
settings.load_profile("suite")


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The event loop of the server, which closes connections and starts tasks in an order of its own."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def starter_cache() -> Iterator[Path]:
    """The cache of the test session: INFERLOOM_CACHE if set, else `.test-cache`, which is kept between sessions."""
    before = os.environ.get("INFERLOOM_CACHE")
    if before is None:
        os.environ["INFERLOOM_CACHE"] = str(Path(__file__).parent.parent / ".test-cache")
    yield Path(os.environ["INFERLOOM_CACHE"])
    if before is None:
        del os.environ["INFERLOOM_CACHE"]


@pytest.fixture(scope="session")
def smollm2_checkpoint(starter_cache: Path) -> Checkpoint:
    """The chat starter, ready to be mapped."""
    return prepare("smollm2")


@pytest.fixture(scope="session")
def smollm2_floats(smollm2_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chat starter's folder with its weights in float32, as other libraries read them."""
    from factories.floats import as_floats

    return as_floats(smollm2_checkpoint, tmp_path_factory.mktemp("floats") / "smollm2")


@pytest.fixture(scope="session")
def minilm_checkpoint(starter_cache: Path) -> Checkpoint:
    """The embedding starter, ready to be mapped."""
    return prepare("minilm")
