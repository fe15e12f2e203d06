from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from factories.checkpoints import Family, make_checkpoint

from inferloom.formats.checkpoint import Checkpoint
from inferloom.kernels.native import library

# Where the native operators were not built; the head of the report of tests/kernels says why.
collect_ignore_glob = [] if library.available() else ["test_native_*.py", "test_gguf_quality.py"]


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Checkpoint]:
    """Random checkpoints, made once for every distinct request."""
    made: dict[tuple[Any, ...], Checkpoint] = {}

    def make(family: Family, *, dtype: torch.dtype = torch.float32, **overrides: Any) -> Checkpoint:
        key = (family, dtype, repr(overrides))
        if key not in made:
            folder: Path = tmp_path_factory.mktemp(family) / family
            made[key] = make_checkpoint(folder, family, dtype=dtype, **overrides)
        return made[key]

    return make
