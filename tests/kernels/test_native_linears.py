"""Native linear layers against the same products in double precision, with every instruction set of this machine."""

from __future__ import annotations

import pytest
import torch
from factories.matrices import QUANTISED

from inferloom.formats.interleaving import Layout
from inferloom.formats.layouts import PackedTensor, dequantise
from inferloom.kernels.native import library
from inferloom.kernels.native.operators import NativeKernels, layout_of
from kernels.native_arrays import FLOATS, converted, instruction_sets, matrix, packed, values

LAYOUTS = [*FLOATS, *QUANTISED]
SHAPES = [(1, 1), (7, 33), (49, 576), (576, 130), (130, 1000)]  # rows, columns: of no block and no group


def weight_of(rows: int, columns: int, layout: torch.dtype | Layout) -> torch.Tensor | PackedTensor:
    weight = torch.randn(rows, columns)
    return weight.to(layout) if isinstance(layout, torch.dtype) else packed(weight, layout)


def exact(weight: torch.Tensor | PackedTensor) -> torch.Tensor:
    return (dequantise(weight) if isinstance(weight, PackedTensor) else weight).double()


def tolerance(reference: torch.Tensor, inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Of a float32 sum: in proportion to the magnitudes that it adds up."""
    return 4e-6 * (inputs.abs() @ weight.abs().t()) + 1e-6


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_product_is_the_exact_one_of_the_converted_activations(
    isa: str, layout: torch.dtype | Layout
) -> None:
    torch.manual_seed(0)
    native = library.load()
    for rows, columns in SHAPES:
        weight, bias = weight_of(rows, columns, layout), torch.randn(rows)
        for count in (1, 3, 8, 21):
            inputs = converted(torch.randn(count, columns), layout_of(weight)[1])
            seen = values(inputs, layout_of(weight)[1]).double()
            out = torch.full((count, rows + 3), -7.0)
            native.linear(matrix(weight, bias), inputs, out.data_ptr(), rows + 3)
            wanted = seen @ exact(weight).t() + bias.double()
            limit = tolerance(wanted, seen, exact(weight))
            assert ((out[:, :rows].double() - wanted).abs() <= limit).all(), (rows, columns, count)
            assert (out[:, rows:] == -7).all(), "nothing is written past the last row of the weights"


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_row_has_the_same_bits_whatever_other_rows_there_are(
    isa: str, layout: torch.dtype | Layout
) -> None:
    torch.manual_seed(1)
    kernels = NativeKernels()
    weight = weight_of(100, 352, layout)
    product = kernels.packed_linear if isinstance(weight, PackedTensor) else kernels.linear
    x = torch.randn(70, 352)
    whole = product(x, weight, None)  # type: ignore[arg-type]
    for begin, end in ((0, 1), (3, 5), (10, 14), (20, 27), (30, 46), (40, 65), (69, 70)):
        assert torch.equal(product(x[begin:end], weight, None), whole[begin:end])  # type: ignore[arg-type]


def test_results_can_be_added_to_what_is_there_times_a_factor(isa: str) -> None:
    torch.manual_seed(2)
    native = library.load()
    for layout in LAYOUTS:
        weight, bias = weight_of(50, 96, layout), torch.randn(50)
        inputs = converted(torch.randn(9, 96), layout_of(weight)[1])
        plain, before = torch.empty(9, 50), torch.randn(9, 50)
        native.linear(matrix(weight, bias), inputs, plain.data_ptr(), 50)
        added = before.clone()
        native.linear(matrix(weight, bias), inputs, added.data_ptr(), 50, factor=0.25, add=True)
        torch.testing.assert_close(added, before + 0.25 * plain, rtol=1e-5, atol=1e-5)


def test_all_instruction_sets_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    x = torch.randn(6, 224)
    for layout in LAYOUTS:
        weight = weight_of(70, 224, layout)
        results = []
        for name in instruction_sets():
            monkeypatch.setenv("INFERLOOM_ISA", name)
            kernels = NativeKernels()
            product = kernels.packed_linear if isinstance(weight, PackedTensor) else kernels.linear
            results.append(product(x, weight, None))  # type: ignore[arg-type]
        for result in results[1:]:
            torch.testing.assert_close(result, results[0], rtol=2e-5, atol=2e-4)


def test_the_decoder_kernels_answer_in_the_type_of_their_input() -> None:
    kernels = NativeKernels()
    weight, bias = torch.randn(24, 40).bfloat16(), torch.randn(24).bfloat16()
    x = torch.randn(3, 40).bfloat16()
    out = kernels.linear(x, weight, bias)
    assert out.dtype == torch.bfloat16
    wanted = (x.double() @ weight.double().t() + bias.double()).bfloat16()
    torch.testing.assert_close(out, wanted)


def test_rows_without_the_form_that_weights_want_are_refused() -> None:
    native = library.load()
    weight = torch.randn(16, 32).bfloat16()
    out = torch.empty(1, 16)
    with pytest.raises(ValueError, match="lack the form"):
        native.linear(matrix(weight), converted(torch.randn(1, 32), 1), out.data_ptr(), 16)
    with pytest.raises(ValueError, match="another number of columns"):
        native.linear(matrix(weight), converted(torch.randn(1, 33), 2), out.data_ptr(), 16)
