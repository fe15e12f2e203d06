"""The greatest logits, looked for among bounds: the same token and the same bits as among all logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from inferloom.formats.checkpoint import Checkpoint
from inferloom.formats.weights import open_weights
from inferloom.models.batch import RaggedBatch
from inferloom.models.native import NativeDecoder

from .test_decoder import prompt_of
from .test_native_packed import SCHEMES, executors, packed

Make = Callable[..., Checkpoint]
VOCABULARY = 20_008  # not a multiple of 16


def decoder(make: Make, scheme: str, *, outlier: float = 1.0, threads: int = 2) -> NativeDecoder:
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 256}
    checkpoint = make("qwen3", dtype=torch.bfloat16, initializer_range=0.05, **sizes)
    tensors = dict(open_weights(checkpoint))
    table = tensors["model.embed_tokens.weight"]
    assert isinstance(table, torch.Tensor)
    tensors["model.embed_tokens.weight"] = torch.cat((table[:, :1] * outlier, table[:, 1:]), dim=1)
    native, _ = executors(checkpoint, packed(tensors, SCHEMES[scheme]), threads=threads)
    native.allocate_kv(16)
    return native


def decodes(sequences: int, step: int) -> RaggedBatch:
    """One row for each of some sequences, a page each, whose earlier rows were computed."""
    ids = [(1 + sequence + 7 * step) % VOCABULARY for sequence in range(sequences)]
    rows = list(range(sequences))
    tables = [[sequence] for sequence in rows]
    return RaggedBatch(ids, [step] * sequences, [*rows, sequences], [step + 1] * sequences, tables, rows)


def both(native: NativeDecoder, batch: RaggedBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """All logits, and those of the same rows of which only the greatest was asked for."""
    every = native.forward(batch).clone()
    return every, native.forward(replace(batch, best_only=True)).clone()


def assert_same_best(every: torch.Tensor, best: torch.Tensor) -> None:
    assert torch.equal(best.argmax(dim=1), every.argmax(dim=1))
    assert torch.equal(best.amax(dim=1), every.amax(dim=1))
    known = best.isfinite()
    assert torch.equal(best[known], every[known])


@pytest.mark.parametrize("scheme", ["int8", "int4", "rows and groups"])
@pytest.mark.parametrize("sequences", [1, 2, 3, 4])
def test_the_greatest_logits_are_the_same_bits(scheme: str, sequences: int, checkpoint_of: Make) -> None:
    native = decoder(checkpoint_of, scheme)
    for step in range(24):
        every, best = both(native, decodes(sequences, step))
        assert_same_best(every, best)
        assert step > 0 or best.isinf().float().mean() > 0.4


def test_more_rows_than_the_bounds_are_made_for_get_all_their_logits(checkpoint_of: Make) -> None:
    every, best = both(decoder(checkpoint_of, "int8"), decodes(5, 0))
    assert torch.equal(best, every)


def test_the_last_row_of_a_prompt_is_looked_for_like_any_other(checkpoint_of: Make) -> None:
    native = decoder(checkpoint_of, "int4")
    prompt = prompt_of(40, 1)
    every, best = both(native, RaggedBatch(prompt, list(range(40)), [0, 40], [40], [[0, 1]], [39]))
    assert_same_best(every, best)
    assert best.isinf().any()


def test_any_number_of_threads_finds_the_same(checkpoint_of: Make) -> None:
    native, alone = decoder(checkpoint_of, "int8"), decoder(checkpoint_of, "int8", threads=1)
    for step in range(8):
        batch = replace(decodes(2, step), best_only=True)
        ours, theirs = native.forward(batch).clone(), alone.forward(batch)
        assert torch.equal(ours.amax(dim=1), theirs.amax(dim=1))
        assert torch.equal(ours.argmax(dim=1), theirs.argmax(dim=1))


def test_bounds_that_decide_little_are_given_up_for_a_while(checkpoint_of: Make) -> None:
    """A column of large weights makes steps so wide that half of their bits say nothing."""
    native = decoder(checkpoint_of, "int8", outlier=4.0)
    tried = []
    for step in range(30):
        every, best = both(native, decodes(1, step))
        assert_same_best(every, best)
        left_out = float(best.isinf().float().mean())
        assert left_out < 0.67
        tried.append(left_out > 0)
    # The first step sees that much is undecided; then come fifteen that do not try.
    assert [step for step, looked in enumerate(tried) if looked] == [0, 16]
