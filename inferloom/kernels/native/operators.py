"""`Kernels` with the native linear layers, for decoders that the C++ step does not know: everything else is torch's."""

from __future__ import annotations

import torch

from inferloom.formats.layouts import PackedTensor
from inferloom.kernels.native import library
from inferloom.kernels.reference import ReferenceKernels

# The forms of a row of activations (csrc/activations.h).
FLOAT, BFLOAT16, INT8 = 1, 2, 4

_FLOAT_LAYOUTS = {torch.float32: (0, FLOAT), torch.float16: (1, FLOAT), torch.bfloat16: (2, BFLOAT16)}


def layout_of(weight: torch.Tensor | PackedTensor) -> tuple[int, int]:
    """(number of the layout, form of the activations that it reads)."""
    if isinstance(weight, PackedTensor):
        return int(weight.layout), INT8
    return _FLOAT_LAYOUTS[weight.dtype]


class NativeKernels(ReferenceKernels):
    """Reads weights of every layout as they are, in the CPU's memory. The rows of a product do not depend on one another."""

    name = "native"

    def __init__(self) -> None:
        """Raises ConfigError where the native operators are not available."""
        super().__init__()
        self._native = library.load()
        library.isa()
        self._rows: dict[tuple[int, int], object] = {}

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if weight.device.type != "cpu" or weight.dtype not in _FLOAT_LAYOUTS or not weight.is_contiguous():
            return super().linear(x, weight, bias)
        return self._product(x, weight, bias)

    def packed_linear(self, x: torch.Tensor, weight: PackedTensor, bias: torch.Tensor | None) -> torch.Tensor:
        return self._product(x, weight, bias)

    def _product(
        self, x: torch.Tensor, weight: torch.Tensor | PackedTensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        layout, form = layout_of(weight)
        rows, columns = weight.shape
        data = weight.data if isinstance(weight, PackedTensor) else weight
        wide = None if bias is None else bias.float().contiguous()
        matrix = self._native.Linear(
            layout, rows, columns, data.data_ptr(), 0 if wide is None else wide.data_ptr()
        )
        inputs = x.float().contiguous()
        count = len(inputs)
        converted = self._converted(count, columns, form)
        output = torch.empty(count, rows)
        self._native.convert(inputs.data_ptr(), columns, converted, count)
        self._native.linear(matrix, converted, output.data_ptr(), rows, rows=count)
        return output.to(x.dtype)

    def _converted(self, count: int, columns: int, form: int) -> object:
        """Room for that many rows, kept for the next product of as many columns."""
        room = self._rows.get((columns, form))
        if room is None or room.count < count:  # type: ignore[attr-defined]
            room = self._rows[columns, form] = self._native.Rows(count, columns, form)
        return room
