from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from inferloom.kernels.native import library

collect_ignore_glob = [] if library.available() else ["test_native_*.py"]


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """The models here are tiny: several threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
