"""Servers as a user starts them, with real models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from factories.checkpoints import make_checkpoint
from factories.server import Served, serving
from system.clients import connect

# Two workers on few cores: one thread each, so that they do not wait for each other's.
ONE_THREAD = ",threads=1"
# The chat starter once more, computed in float32: what is promised exactly is promised there.
STARTERS = ("-m", f"smollm2{ONE_THREAD}", "-m", f"minilm{ONE_THREAD}")
EXACT = ("-m", f"smollm2,name=exact,activation_dtype=float32,max_model_len=2048{ONE_THREAD}")


@pytest.fixture(scope="session")
def starters(starter_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server for many tests: `smollm2` (the default), `minilm` and `exact`. Its models stay loaded."""
    home = tmp_path_factory.mktemp("home")
    with serving(*STARTERS, *EXACT, environment={"INFERLOOM_HOME": str(home)}) as served:
        yield served


@pytest.fixture(scope="session")
def client(starters: Served) -> Iterator[openai.OpenAI]:
    """The official client, talking to the starters."""
    with connect(starters) as client:
        yield client


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two tiny random checkpoints: `first` (a Llama) and `second` (a Qwen3)."""
    folder = tmp_path_factory.mktemp("checkpoints")
    make_checkpoint(folder / "first", "llama", seed=1, max_positions=8192)
    make_checkpoint(folder / "second", "qwen3", seed=2, max_positions=8192)
    return folder
