from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from factories.server import STARTERS, Served, serving

from inferloom.config.home import cache_dir

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def starters() -> Iterator[Served]:
    """A server with the two starter models: what the documentation's reader has running."""
    with serving(*STARTERS) as served:
        for name in ("smollm2", "minilm"):
            served.wait_for(f"{name} ready")
        yield served


@pytest.fixture(scope="session")
def reader(starters: Served, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The folder and the environment of a reader who types what a page says: a home of their own, our commands on
    the path, the server's address where the pages say 127.0.0.1:8080."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "examples").symlink_to(ROOT / "examples")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "INFERLOOM_HOME": str(folder / "home"),
        "INFERLOOM_CACHE": str(cache_dir()),
        "INFERLOOM_URL": starters.url,
        "OPENAI_API_KEY": "none",
        "COLUMNS": "120",
    }
    return folder, environment
