"""Native operators called with tensors, for the tests: addresses and sizes are taken from them here."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import torch
from factories.matrices import pack

from inferloom.formats.interleaving import ROWS, Layout
from inferloom.formats.layouts import PackedTensor
from inferloom.kernels.native import library
from inferloom.kernels.native.operators import BFLOAT16, FLOAT, INT8, layout_of

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2}


def instruction_sets() -> list[str]:
    return list(library.load().isas())


def aligned(data: torch.Tensor) -> torch.Tensor:
    """The same bytes at a multiple of 64."""
    room = torch.empty(data.numel() + 64, dtype=torch.uint8)
    start = -room.data_ptr() % 64
    room[start : start + data.numel()] = data
    return room[start : start + data.numel()]


def packed(weight: torch.Tensor, layout: Layout) -> PackedTensor:
    """A float matrix quantised to a layout."""
    rows, columns = weight.shape
    whole = torch.nn.functional.pad(weight.float(), (0, 0, 0, -rows % ROWS))
    data = torch.from_numpy(np.ascontiguousarray(pack(whole.numpy(), layout))).flatten()
    return PackedTensor(layout, (rows, columns), aligned(data))


def matrix(weight: torch.Tensor | PackedTensor, bias: torch.Tensor | None = None) -> Any:
    """The view that operators take; `weight` and `bias` must outlive it."""
    data = weight.data if isinstance(weight, PackedTensor) else weight
    return library.load().Linear(
        layout_of(weight)[0], *weight.shape, data.data_ptr(), 0 if bias is None else bias.data_ptr()
    )


def _array(address: int, kind: Any, *shape: int) -> torch.Tensor:
    buffer = (kind * int(np.prod(shape))).from_address(address)
    return torch.from_numpy(np.ctypeslib.as_array(buffer).reshape(shape).copy())


def values(rows: Any, form: int) -> torch.Tensor:
    """One form of activations as float32 [count, cols]."""
    count, stride = rows.count, rows.stride
    if form == FLOAT:
        whole = _array(rows.f32, ctypes.c_float, count, stride)
    elif form == BFLOAT16:
        whole = _array(rows.bf16, ctypes.c_int16, count, stride).view(torch.bfloat16).float()
    else:
        groups = stride // rows.group
        steps = _array(rows.q8, ctypes.c_int8, count, groups, rows.group).float()
        whole = (steps * _array(rows.scale, ctypes.c_float, count, groups, 1)).reshape(count, stride)
    assert (whole[:, rows.cols :] == 0).all(), "columns past the last are zero"
    return whole[:, : rows.cols]


def sums(rows: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of each 32 columns of the int8 form: the sum, and what the operators are told of it (sum, scale * sum)."""
    groups = rows.stride // 32
    steps = _array(rows.q8, ctypes.c_int8, rows.count, groups, 32).long().sum(-1)
    told = _array(rows.sum, ctypes.c_int32, rows.count, groups).long()
    return steps, told, _array(rows.scaled_sum, ctypes.c_float, rows.count, groups)


def converted(x: torch.Tensor, forms: int, group: int = 32) -> Any:
    native = library.load()
    rows = native.Rows(len(x), x.shape[1], forms, group)
    native.convert(x.data_ptr(), x.stride(0), rows)
    return rows


ALL_FORMS = FLOAT | BFLOAT16 | INT8
