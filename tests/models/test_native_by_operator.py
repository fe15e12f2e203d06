"""Decoders that the native step does not know, over the native matrix products."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from factories.checkpoints import make_checkpoint

from inferloom.formats.prepare import prepare
from inferloom.models.batch import Executor, RaggedBatch
from inferloom.models.loader import load

ROWS = 20
BATCH = RaggedBatch(list(range(ROWS)), list(range(ROWS)), [0, ROWS], [ROWS], [[0]], list(range(ROWS)))


def logits(executor: object) -> torch.Tensor:
    assert isinstance(executor, Executor)
    executor.allocate_kv(2)
    return executor.forward(BATCH).clone()


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_a_mixture_of_experts_runs_operator_by_operator_on_weights_as_they_lie(
    quantization: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFERLOOM_CACHE", str(tmp_path / "cache"))
    make_checkpoint(tmp_path / "m", "qwen3_moe", dtype=torch.bfloat16)
    checkpoint = prepare(str(tmp_path / "m"), quantization=quantization)
    ours = load(checkpoint)
    exact = logits(load(checkpoint, activation_dtype="float32", executor="reference"))
    assert ours.card.executor.startswith("operator by operator (")
    assert "mixture of experts" in ours.card.executor
    # A near-tie between two experts may fall the other way: most rows must agree, not every one.
    errors = (logits(ours) - exact).abs().amax(1) / exact.abs().max()
    assert errors.quantile(0.8) < (2e-2 if quantization == "none" else 6e-2)
