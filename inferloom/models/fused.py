"""Matrices that a checkpoint stores as one and the decoder uses as several.

Parts that lie in consecutive rows are views of the mapped file. Others are copied: transposed ones (GPT-2), rows that
alternate head by head (GPT-NeoX), and quantised ones whose parts do not begin with a block of sixteen rows or whose
blocks lie in several planes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch

from inferloom.formats.layout import ROWS, planes
from inferloom.formats.layouts import PackedTensor, dequantise

Matrix = torch.Tensor | PackedTensor


def transposed(matrix: Matrix, dtype: torch.dtype) -> torch.Tensor:
    """[in_features, out_features] → [out_features, in_features], contiguous; a quantised one becomes `dtype`."""
    floats = dequantise(matrix, dtype) if isinstance(matrix, PackedTensor) else matrix
    return floats.t().contiguous()


def split_rows(matrix: Matrix, sizes: Sequence[int], dtype: torch.dtype) -> list[Matrix]:
    """The first sizes[0] rows, the next sizes[1], and so on."""
    edges = list(pairwise(accumulate(sizes, initial=0)))
    if isinstance(matrix, PackedTensor):
        if any(first % ROWS for first, _ in edges) or len(planes(matrix.shape[1], matrix.layout)) > 1:
            matrix = dequantise(matrix, dtype)
        else:
            return [_packed_rows(matrix, first, last) for first, last in edges]
    return [matrix[first:last] for first, last in edges]


def split_heads(matrix: Matrix, heads: int, dtype: torch.dtype) -> list[Matrix]:
    """Rows that go head by head, its query, key and value → the queries, keys and values of all heads."""
    floats = dequantise(matrix, dtype) if isinstance(matrix, PackedTensor) else matrix
    parts = floats.view(heads, 3, -1, floats.shape[1]).unbind(1)
    return [part.reshape(-1, floats.shape[1]) for part in parts]


def _packed_rows(matrix: PackedTensor, first: int, last: int) -> PackedTensor:
    blocks = matrix.data.view(-(-matrix.shape[0] // ROWS), -1)
    part = blocks[first // ROWS : -(-last // ROWS)]
    return PackedTensor(matrix.layout, (last - first, matrix.shape[1]), part.reshape(-1))
