"""Weight matrices in the layouts that the kernels read (`csrc/layouts.md`), and back to floats.

Nothing here needs a compiler: an executor without the native kernels dequantises while it loads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from inferloom.errors import InvalidFormat
from inferloom.formats.interleaving import GROUP, ROWS, Layout, block_bytes, packed_bytes, padded

__all__ = ["Layout", "PackedTensor", "dequantise"]

_PIECE = 1 << 19  # elements dequantised at a time: intermediate results stay in the cache


@dataclass(frozen=True, slots=True)
class PackedTensor:
    """A quantised matrix: `shape` [out_features, in_features] as the checkpoint has it, `data` the packed bytes
    (uint8, one axis, usually a view of a mapped file, at a multiple of 64 bytes)."""

    layout: Layout
    shape: tuple[int, int]
    data: torch.Tensor

    def __post_init__(self) -> None:
        wanted = packed_bytes(self.shape, self.layout)
        if self.data.dtype != torch.uint8 or self.data.numel() != wanted:
            raise InvalidFormat(
                f"a {self.layout.name} matrix of shape {list(self.shape)} has {wanted:,} bytes, not {self.data.nbytes:,}."
            )

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    def numel(self) -> int:
        """Values of the matrix, without padding."""
        return self.shape[0] * self.shape[1]

    def rows(self, indices: torch.Tensor) -> torch.Tensor:
        """The rows `indices` [n] dequantised: float32 [n, in_features]. What an embedding is asked for."""
        indices = indices.cpu()
        width = block_bytes(self.shape[1], self.layout)
        blocks = self.data.view(-1, width).index_select(0, indices // ROWS)
        values = _values(blocks, self.layout).view(len(indices), ROWS, -1)
        return values[torch.arange(len(indices)), indices % ROWS, : self.shape[1]].contiguous()


def dequantise(packed: PackedTensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The values [out_features, in_features], exact in float32, rounded once to another `dtype`. On the CPU."""
    rows, columns = packed.shape
    out = torch.empty(rows, columns, dtype=dtype)
    blocks = packed.data.view(-1, block_bytes(columns, packed.layout))
    step = max(1, _PIECE // (padded(packed.shape, packed.layout)[1] * ROWS))
    for start in range(0, len(blocks), step):
        part = out[start * ROWS : (start + step) * ROWS]
        part.copy_(_values(blocks[start : start + step], packed.layout)[: len(part), :columns])
    return out


def _values(blocks: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Blocks of sixteen rows [n, bytes] → float32 [n * 16, padded columns]."""
    if layout is Layout.Q8_ROW:
        return _q8_row(blocks)
    return _q8_32(blocks) if layout is Layout.Q8_32 else _q4_32(blocks)


def _q4_32(blocks: torch.Tensor) -> torch.Tensor:
    count = len(blocks)
    groups = blocks.view(count, -1, 320)
    nibbles = (
        groups[..., :256].reshape(count, -1, 4, ROWS, 4).permute(0, 3, 1, 2, 4)
    )  # block, row, group, quad, column
    values = torch.empty(count, ROWS, groups.shape[1], 2, 4, 4)
    values[..., 0, :, :] = nibbles & 15
    values[..., 1, :, :] = nibbles >> 4
    values = values.flatten(3)
    values *= _sixteen(groups[..., 256:288])
    values += _sixteen(groups[..., 288:])
    return values.view(count * ROWS, -1)


def _q8_32(blocks: torch.Tensor) -> torch.Tensor:
    count = len(blocks)
    pairs = blocks.view(count, -1, 1088)
    scales = pairs[..., 1024:].reshape(count, -1, 32)  # of one group after the other
    quads = pairs[..., :1024].reshape(count, -1, 16, ROWS, 4).permute(0, 3, 1, 2, 4)
    values = quads.to(torch.float32).reshape(count, ROWS, -1, GROUP)
    values -= 128
    values *= _sixteen(scales)
    return values.view(count * ROWS, -1)


def _q8_row(blocks: torch.Tensor) -> torch.Tensor:
    count, width = len(blocks), blocks.shape[1] - 64
    quads = blocks[:, :width].reshape(count, -1, ROWS, 4).permute(0, 2, 1, 3)
    values = quads.to(torch.float32).reshape(count, ROWS, -1)
    values -= 128
    values *= blocks[:, width:].contiguous().view(torch.float32).view(count, ROWS, 1)
    return values.view(count * ROWS, -1)


def _sixteen(numbers: torch.Tensor) -> torch.Tensor:
    """The float16 of each group's sixteen rows [n, groups, 32 bytes] as float32 [n, 16, groups, 1]."""
    return numbers.contiguous().view(torch.float16).float().transpose(1, 2).unsqueeze(-1)
