"""Norms, conversions, gates, embeddings and caps against double precision, with every instruction set of this machine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from factories.matrices import QUANTISED

from inferloom.formats.interleaving import Layout
from inferloom.formats.layouts import PackedTensor, dequantise
from inferloom.kernels.native import library
from inferloom.kernels.native.operators import BFLOAT16, FLOAT, INT8, layout_of
from kernels.native_arrays import ACTIVATIONS, ALL_FORMS, FLOATS, converted, matrix, packed, sums, values

WIDTHS = (1, 15, 64, 130, 576)
EPS = 1e-5


def assert_forms(rows: Any, wanted: torch.Tensor) -> None:
    """Every form of `rows` is `wanted` (float64) as near as the form allows."""
    seen = values(rows, FLOAT).double()
    torch.testing.assert_close(seen, wanted, rtol=3e-6, atol=3e-6)
    torch.testing.assert_close(values(rows, BFLOAT16).double(), seen, rtol=2**-8, atol=1e-37)
    padded = F.pad(seen, (0, rows.stride - rows.cols)).reshape(rows.count, -1, rows.group)
    step = padded.abs().amax(-1, keepdim=True) / 127
    grid = F.pad(values(rows, INT8).double(), (0, rows.stride - rows.cols)).reshape(padded.shape)
    assert ((grid - padded).abs() <= 0.501 * step + 1e-30).all()
    exact, told, scaled = sums(rows)
    assert torch.equal(exact, told)
    steps = step[..., 0].repeat_interleave(rows.group // 32, dim=1)
    torch.testing.assert_close(scaled.double(), exact.double() * steps, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("group", [32, 64, 128])
def test_rows_are_converted_to_every_form(isa: str, group: int) -> None:
    torch.manual_seed(0)
    for width in WIDTHS:
        x = torch.randn(3, width) * torch.tensor([[1e-3], [1.0], [1e4]])
        x[1, : width // 2] = 0
        assert_forms(converted(x, ALL_FORMS, group), x.double())


def test_a_row_of_zeros_is_zero_in_every_form(isa: str) -> None:
    rows = converted(torch.zeros(2, 70), ALL_FORMS)
    assert all((values(rows, form) == 0).all() for form in (FLOAT, BFLOAT16, INT8))


@pytest.mark.parametrize("kind", [0, 1], ids=["rms", "layer"])
def test_norms_are_exact_in_every_form_and_in_place(isa: str, kind: int) -> None:
    torch.manual_seed(1)
    native = library.load()
    for width in WIDTHS:
        x, weight, bias = torch.randn(4, width) * 3, torch.randn(width), torch.randn(width)
        if kind == 0:
            wanted = F.rms_norm(x.double(), (width,), weight.double(), EPS)
        else:
            wanted = F.layer_norm(x.double(), (width,), weight.double(), bias.double(), EPS)
        shift = bias.data_ptr() if kind else 0
        rows = native.Rows(4, width, ALL_FORMS)
        native.norm(x.data_ptr(), width, weight.data_ptr(), shift, EPS, kind, rows)
        assert_forms(rows, wanted)
        native.norm_rows(
            x.data_ptr(), width, 4, width, weight.data_ptr(), shift, EPS, kind, x.data_ptr(), width
        )
        torch.testing.assert_close(x.double(), wanted, rtol=3e-6, atol=3e-6)


def test_a_norm_without_weights_has_ones(isa: str) -> None:
    native = library.load()
    x, out = torch.randn(2, 40), torch.empty(2, 40)
    native.norm_rows(x.data_ptr(), 40, 2, 40, 0, 0, EPS, 0, out.data_ptr(), 40)
    torch.testing.assert_close(out, F.rms_norm(x, (40,), None, EPS), rtol=1e-5, atol=1e-6)


def activated(name: str, x: torch.Tensor) -> torch.Tensor:
    if name == "silu":
        return F.silu(x)
    return F.gelu(x, approximate="tanh" if name == "gelu_tanh" else "none")


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("layout", [*FLOATS, *QUANTISED], ids=str)
def test_gates_multiply_what_goes_up(isa: str, layout: torch.dtype | Layout, name: str) -> None:
    torch.manual_seed(2)
    native = library.load()
    inner, width = 200, 96

    def weight() -> torch.Tensor | PackedTensor:
        values_ = torch.randn(inner, width) / 8
        return values_.to(layout) if isinstance(layout, torch.dtype) else packed(values_, layout)

    gate, up = weight(), weight()
    form = layout_of(gate)[1]
    inputs = converted(torch.randn(5, width), form)
    seen = values(inputs, form).double()

    def product(matrix_: torch.Tensor | PackedTensor) -> torch.Tensor:
        exact = dequantise(matrix_) if isinstance(matrix_, PackedTensor) else matrix_
        return seen @ exact.double().t()

    for other in (up, None):
        out = native.Rows(5, inner, ALL_FORMS)
        native.gated(matrix(gate), None if other is None else matrix(other), inputs, out, ACTIVATIONS[name])
        wanted = activated(name, product(gate))
        if other is not None:
            wanted = wanted * product(other)
        torch.testing.assert_close(values(out, FLOAT).double(), wanted, rtol=1e-4, atol=2e-5)
        assert_forms(out, values(out, FLOAT).double())


@pytest.mark.parametrize("layout", [*FLOATS, *QUANTISED], ids=str)
def test_embedding_rows_are_the_rows_of_the_matrix(isa: str, layout: torch.dtype | Layout) -> None:
    torch.manual_seed(3)
    native = library.load()
    values_ = torch.randn(37, 90)
    table = values_.to(layout) if isinstance(layout, torch.dtype) else packed(values_, layout)
    ids = torch.tensor([0, 36, 17, 16, 15, 0], dtype=torch.int32)
    out = torch.empty(6, 90)
    native.embed(matrix(table), ids.data_ptr(), 6, 2.0, out.data_ptr(), 90)
    exact = dequantise(table) if isinstance(table, PackedTensor) else table.float()
    torch.testing.assert_close(out, 2 * exact[ids.long()], rtol=1e-6, atol=1e-7)
    with pytest.raises(ValueError, match="outside the vocabulary"):
        native.embed(
            matrix(table), torch.tensor([37], dtype=torch.int32).data_ptr(), 1, 1.0, out.data_ptr(), 90
        )


def test_a_soft_cap_bends_logits(isa: str) -> None:
    native = library.load()
    x = torch.linspace(-200, 200, 3 * 77).reshape(3, 77).clone()
    wanted = 30 * torch.tanh(x.double() / 30)
    native.soft_cap(x.data_ptr(), 77, 3, 77, 30.0)
    torch.testing.assert_close(x.double(), wanted, rtol=2e-6, atol=2e-5)
