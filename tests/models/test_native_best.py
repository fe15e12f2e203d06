"""The greatest logits, looked for without all logits: the same tokens as among them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from factories import gguf
from factories.matrices import pack
from gguf.constants import GGMLQuantizationType as Kind

from inferloom.errors import InvalidFormat
from inferloom.formats.checkpoint import Checkpoint
from inferloom.formats.layouts import Layout, PackedTensor, dequantise
from inferloom.formats.packed_file import Stored
from inferloom.formats.prepare import prepare
from inferloom.formats.screens import screen_of
from inferloom.formats.weights import open_weights
from inferloom.models.batch import RaggedBatch
from inferloom.models.loader import load
from inferloom.models.native import NativeDecoder

from .test_decoder import prompt_of
from .test_native_packed import SCHEMES, aligned, executors, packed

Make = Callable[..., Checkpoint]
VOCABULARY = 20_008  # not a multiple of 16


def decoder(
    make: Make, scheme: str, *, outlier: float = 1.0, norm: float | None = None, threads: int = 2
) -> NativeDecoder:
    """One whose output matrix is a screen or has one beside it."""
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 256}
    checkpoint = make("qwen3", dtype=torch.bfloat16, initializer_range=0.05, **sizes)
    tensors = dict(open_weights(checkpoint))
    table = tensors["model.embed_tokens.weight"]
    assert isinstance(table, torch.Tensor)
    tensors["model.embed_tokens.weight"] = torch.cat((table[:, :1] * outlier, table[:, 1:]), dim=1)
    if norm is not None:
        tensors["model.norm.weight"] = torch.full((256,), norm, dtype=torch.bfloat16)
    found = packed(tensors, SCHEMES[scheme])
    head = found["model.embed_tokens.weight"]
    assert isinstance(head, PackedTensor)
    if head.layout is not Layout.Q8_HALVES:
        values = torch.nn.functional.pad(dequantise(head), (0, 0, 0, -VOCABULARY % 16)).numpy()
        data = aligned(torch.from_numpy(pack(values, Layout.Q4_DITHERED)))
        found["model.embed_tokens.screen"] = PackedTensor(Layout.Q4_DITHERED, head.shape, data)
    native, _ = executors(checkpoint, found, threads=threads)
    native.allocate_kv(16)
    return native


def decodes(sequences: int, step: int, *, vocabulary: int = VOCABULARY) -> RaggedBatch:
    """One row for each of some sequences, a page each, whose earlier rows were computed."""
    ids = [(1 + sequence + 7 * step) % vocabulary for sequence in range(sequences)]
    rows = list(range(sequences))
    tables = [[sequence] for sequence in rows]
    return RaggedBatch(ids, [step] * sequences, [*rows, sequences], [step + 1] * sequences, tables, rows)


def both(native: NativeDecoder, batch: RaggedBatch) -> tuple[list[int], list[int], float]:
    """The best of all logits, what is found without them, and what share of them was computed for it."""
    every = native.forward(batch)
    expected = [int((row == row.amax()).nonzero()[0]) for row in every]
    return expected, native.forward_best(batch), native.computed_share


@pytest.mark.parametrize("scheme", ["int8", "int4", "rows and groups", "q8_0", "as a mixed GGUF"])
@pytest.mark.parametrize("sequences", [1, 2, 3, 4])
def test_the_greatest_logits_are_the_same(scheme: str, sequences: int, checkpoint_of: Make) -> None:
    native = decoder(checkpoint_of, scheme)
    for step in range(24):
        expected, found, computed = both(native, decodes(sequences, step))
        assert found == expected
        assert step > 0 or computed < 0.6


@pytest.mark.parametrize("scheme", ["int8", "q8_0"])
def test_more_rows_than_the_bounds_are_made_for_get_all_their_logits(
    scheme: str, checkpoint_of: Make
) -> None:
    expected, found, computed = both(decoder(checkpoint_of, scheme), decodes(5, 0))
    assert found == expected
    assert computed == 1


@pytest.mark.parametrize("sequences", [1, 3, 9])
def test_float_matrices_find_theirs_among_all_logits(sequences: int, checkpoint_of: Make) -> None:
    checkpoint = checkpoint_of("qwen3", dtype=torch.bfloat16, vocab_size=VOCABULARY)
    native, _ = executors(checkpoint, dict(open_weights(checkpoint)))
    native.allocate_kv(16)
    for step in range(8):
        expected, found, computed = both(native, decodes(sequences, step))
        assert found == expected
        assert computed == 1


def test_of_equal_logits_the_first_is_the_best(checkpoint_of: Make) -> None:
    """Every row of the table a thousand times: all find one of a thousand equal ones."""
    checkpoint = checkpoint_of("qwen3", dtype=torch.bfloat16, vocab_size=VOCABULARY)
    tensors = dict(open_weights(checkpoint))
    table = tensors["model.embed_tokens.weight"]
    assert isinstance(table, torch.Tensor)
    tensors["model.embed_tokens.weight"] = (
        table[:20].repeat(-(-VOCABULARY // 20), 1)[:VOCABULARY].contiguous()
    )
    for weights in (tensors, packed(tensors, SCHEMES["int8"])):
        native, _ = executors(checkpoint, weights)
        native.allocate_kv(16)
        for sequences in (2, 5):
            expected, found, _ = both(native, decodes(sequences, 0))
            assert found == expected
            assert max(found) < 20


def test_a_row_that_is_no_distribution_has_no_best(checkpoint_of: Make) -> None:
    checkpoint = checkpoint_of("qwen3", dtype=torch.bfloat16)
    tensors = dict(open_weights(checkpoint))
    norm = tensors["model.norm.weight"]
    assert isinstance(norm, torch.Tensor)
    tensors["model.norm.weight"] = torch.full_like(norm, torch.nan)
    for scheme in (None, "int8", "int4"):
        native, _ = executors(checkpoint, packed(tensors, SCHEMES[scheme]) if scheme else tensors)
        native.allocate_kv(16)
        assert native.forward_best(decodes(2, 0)) == [-1, -1]
        assert native.forward(decodes(2, 0)).isnan().all()


def test_a_row_that_is_no_distribution_has_no_best_beside_a_screen_either(checkpoint_of: Make) -> None:
    native = decoder(checkpoint_of, "q8_0", norm=torch.nan)
    assert native.forward_best(decodes(2, 0)) == [-1, -1]


@pytest.mark.parametrize("tied", [True, False])
def test_a_gguf_file_brings_the_screen_of_its_output_matrix(tied: bool, tmp_path: Path) -> None:
    vocabulary = gguf.byte_vocabulary()
    tensors = gguf.random_tensors(len(vocabulary.tokens), tied=tied)
    path = gguf.write(tmp_path / "m.gguf", vocabulary=vocabulary, tensors=tensors, kind=Kind.Q8_0)
    native = load(prepare(str(path)))
    assert isinstance(native, NativeDecoder)
    native.allocate_kv(4)
    for step in range(8):
        expected, found, computed = both(native, decodes(2, step, vocabulary=len(vocabulary.tokens)))
        assert found == expected
        assert step > 0 or computed < 1


def test_the_last_row_of_a_prompt_is_looked_for_like_any_other(checkpoint_of: Make) -> None:
    native = decoder(checkpoint_of, "int4")
    prompt = prompt_of(40, 1)
    expected, found, computed = both(
        native, RaggedBatch(prompt, list(range(40)), [0, 40], [40], [[0, 1]], [39])
    )
    assert found == expected
    assert computed < 1


def test_no_screen_is_made_of_more_columns_than_there_is_a_dither_for() -> None:
    assert screen_of(Stored("lm_head.weight", (64, 8192), layout=Layout.Q8_32)) is not None
    assert screen_of(Stored("lm_head.weight", (64, 8224), layout=Layout.Q8_32)) is None


@pytest.mark.parametrize("change", ["layout", "shape"])
def test_a_screen_that_does_not_fit_its_matrix_is_refused(change: str, checkpoint_of: Make) -> None:
    checkpoint = checkpoint_of("qwen3", dtype=torch.bfloat16)
    tensors = packed(open_weights(checkpoint), SCHEMES["q8_0"])
    rows, columns = tensors["model.embed_tokens.weight"].shape
    layout, shape = Layout.Q4_DITHERED, (rows - 16, columns)
    if change == "layout":
        layout, shape = Layout.Q8_ROW, (rows, columns)
    values = torch.zeros(shape[0] + -shape[0] % 16, columns).numpy()
    data = aligned(torch.from_numpy(pack(values, layout)))
    tensors["model.embed_tokens.screen"] = PackedTensor(layout, shape, data)
    with pytest.raises(InvalidFormat, match=r"model\.embed_tokens\.screen is no screen of a matrix"):
        executors(checkpoint, tensors)


def test_any_number_of_threads_finds_the_same(checkpoint_of: Make) -> None:
    native, alone = decoder(checkpoint_of, "int8"), decoder(checkpoint_of, "int8", threads=1)
    for step in range(8):
        batch = decodes(2, step)
        assert native.forward_best(batch) == alone.forward_best(batch)


def test_bounds_that_decide_little_are_given_up_for_a_while(checkpoint_of: Make) -> None:
    """A column of large weights makes steps so wide that half of their bits say nothing."""
    native = decoder(checkpoint_of, "int8", outlier=8.0)
    tried = []
    for step in range(30):
        expected, found, computed = both(native, decodes(1, step))
        assert found == expected
        assert computed > 0.33
        tried.append(computed < 1)
    # The first step sees that much is undecided; then come fifteen that do not try.
    assert [step for step, looked in enumerate(tried) if looked] == [0, 16]
