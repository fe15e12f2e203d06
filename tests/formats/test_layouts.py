"""Quantised layouts lie byte for byte as `csrc/layouts.md` says, and come back as the values they stand for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from factories.matrices import QUANTISED, pack

from inferloom.errors import InvalidFormat
from inferloom.formats.interleaving import (
    interleave_q4_32,
    interleave_q4_pairs,
    interleave_q8_32,
    interleave_q8_row,
)
from inferloom.formats.layout import Layout, packed_bytes, padded
from inferloom.formats.layouts import PackedTensor, dequantise

LAYOUTS = (*QUANTISED, Layout.Q4_DITHERED)
ODD = ((16, 32), (1, 1), (17, 33), (37, 96), (48, 200), (100, 576), (5, 1000))


def packed(values: np.ndarray, layout: Layout) -> PackedTensor:
    rows, columns = values.shape
    whole = np.pad(values, ((0, -rows % 16), (0, 0)))
    data = torch.from_numpy(pack(whole, layout)).view(-1)
    return PackedTensor(layout, (rows, columns), data)


def gaussian(*shape: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * 0.05).astype(np.float32)


def half(raw: np.ndarray, at: int) -> float:
    return float(raw[at : at + 2].view(np.float16)[0])


def dithered(column: int) -> int:
    """The upper eight bits of splitmix64 (Steele, Lea, Flood 2014) at a column's number."""
    whole = (1 << 64) - 1
    z = (column + 1) * 0x9E3779B97F4A7C15 & whole
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & whole
    z = (z ^ z >> 27) * 0x94D049BB133111EB & whole
    return (z ^ z >> 31) >> 56


def element(raw: np.ndarray, layout: Layout, shape: tuple[int, int], row: int, column: int) -> float:
    """One value, found as the document says, without any of the code under test."""
    columns, lane = shape[1], row % 16
    if layout is Layout.Q8_ROW:
        wide = -(-columns // 128) * 128
        block = raw[row // 16 * (16 * wide + 64) :]
        scale = float(block[16 * wide + 4 * lane :][:4].view(np.float32)[0])
        return scale * (int(block[column // 4 * 64 + 4 * lane + column % 4]) - 128)
    if layout is Layout.Q8_HALVES:
        groups = -(-columns // 128)
        blocks, group = -(-shape[0] // 16), row // 16 * groups + column // 128
        upper, lower = raw[group * 1088 :], raw[blocks * groups * 1088 + group * 1024 :]
        within = column % 128 // 32 * 256 + column % 16 // 4 * 64 + 4 * lane + column % 4
        shift = 4 if column % 32 >= 16 else 0
        byte = (int(upper[within]) >> shift & 15) << 4 | int(lower[within]) >> shift & 15
        scale = np.float32(upper[1024 + 4 * lane :][:4].view(np.float32)[0])
        return float(scale * np.float32(byte - 120 - dithered(column) // 16))
    if layout is Layout.Q8_32:
        block = raw[(row // 16 * -(-columns // 64) + column // 64) * 1088 :]
        within = column % 64
        scale = half(block, 1024 + within // 32 * 32 + 2 * lane)
        return scale * (int(block[within // 4 * 64 + 4 * lane + within % 4]) - 128)
    if layout in (Layout.Q4S_32, Layout.Q4Z_32, Layout.Q4_DITHERED):
        block = raw[(row // 16 * -(-columns // 64) + column // 64) * 576 :]
        second, quad = column % 64 // 32, column % 32 // 4
        byte = int(block[256 * second + quad % 4 * 64 + 4 * lane + column % 4])
        nibble = byte >> 4 if quad >= 4 else byte & 15
        zero = int(block[512 + 32 * second + 2 * lane]) & 63
        if layout is Layout.Q4_DITHERED:  # in the middle of the 16 steps where it may be
            middle = 16 * nibble + 8 - 120 - dithered(column) / 16
            return half(block, 512 + 32 * second + 2 * lane) * middle
        offset = -8 if layout is Layout.Q4S_32 else (zero - 62) / 4
        return half(block, 512 + 32 * second + 2 * lane) * (nibble + offset)
    block = raw[(row // 16 * -(-columns // 32) + column // 32) * 320 :]
    quad = column % 32 // 4
    byte = int(block[quad % 4 * 64 + 4 * lane + column % 4])
    nibble = byte >> 4 if quad >= 4 else byte & 15
    return half(block, 256 + 2 * lane) * nibble + half(block, 288 + 2 * lane)


@pytest.mark.parametrize("shape", ODD)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_lie_where_the_document_says(layout: Layout, shape: tuple[int, int]) -> None:
    tensor = packed(gaussian(*shape), layout)
    values = dequantise(tensor)
    assert values.shape == shape
    raw = tensor.data.numpy()
    chance = np.random.default_rng(1)
    for _ in range(60):
        row, column = int(chance.integers(shape[0])), int(chance.integers(shape[1]))
        assert float(values[row, column]) == np.float32(element(raw, layout, shape, row, column))


@pytest.mark.parametrize("shape", ODD)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_sizes_are_multiples_of_64_and_padding_contributes_nothing(
    layout: Layout, shape: tuple[int, int]
) -> None:
    tensor = packed(gaussian(*shape), layout)
    assert tensor.nbytes == packed_bytes(shape, layout)
    assert tensor.nbytes % 64 == 0
    whole = PackedTensor(layout, padded(shape, layout), tensor.data)
    rows, columns = shape
    assert not dequantise(whole)[rows:].any()
    if layout not in (
        Layout.Q4_32,
        Layout.Q4Z_32,
        Layout.Q4_DITHERED,
    ):  # zero need not be a step: activations of zero meet it there
        assert not dequantise(whole)[:, columns:].any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_are_those_of_the_whole(layout: Layout) -> None:
    tensor = packed(gaussian(37, 100), layout)
    wanted = torch.tensor([36, 0, 5, 5, 16])
    assert torch.equal(tensor.rows(wanted), dequantise(tensor)[wanted])
    assert tensor.rows(torch.empty(0, dtype=torch.int64)).shape == (0, 100)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes_are_rounded_once(dtype: torch.dtype) -> None:
    for layout in QUANTISED:
        tensor = packed(gaussian(300, 700), layout)
        assert torch.equal(dequantise(tensor, dtype), dequantise(tensor).to(dtype))


def test_a_large_matrix_is_the_same_in_pieces() -> None:
    values = gaussian(1024, 512)
    tensor = packed(values, Layout.Q8_ROW)
    assert torch.equal(dequantise(tensor)[512:528], dequantise(packed(values[512:528], Layout.Q8_ROW)))


def test_interleaving_loses_nothing() -> None:
    chance = np.random.default_rng(2)
    numbers = chance.integers(0, 16, (32, 3, 32), dtype=np.uint8)
    scales, minima = (chance.standard_normal((32, 3)).astype(np.float16) for _ in range(2))
    nibbles = numbers[..., :16] | numbers[..., 16:] << 4
    data = torch.from_numpy(interleave_q4_32(nibbles, scales, minima)).view(-1)
    expected = numbers * scales[..., None].astype(np.float32) + minima[..., None].astype(np.float32)
    assert np.array_equal(dequantise(PackedTensor(Layout.Q4_32, (32, 96), data)), expected.reshape(32, 96))
    numbers = chance.integers(0, 16, (32, 4, 32), dtype=np.uint8)
    nibbles = numbers[..., :16] | numbers[..., 16:] << 4
    halves = chance.standard_normal((32, 4)).astype(np.float16)
    data = torch.from_numpy(interleave_q4_pairs(nibbles, halves)).view(-1)
    zeros = (halves.view(np.uint16) & 63).astype(np.float32)
    for layout, offset in ((Layout.Q4S_32, np.float32(-8)), (Layout.Q4Z_32, (zeros[..., None] - 62) / 4)):
        expected = (numbers + offset) * halves[..., None].astype(np.float32)
        assert np.array_equal(dequantise(PackedTensor(layout, (32, 128), data)), expected.reshape(32, 128))
    bytes_ = chance.integers(0, 256, (32, 4, 32), dtype=np.uint8)
    scales = chance.standard_normal((32, 4)).astype(np.float16)
    data = torch.from_numpy(interleave_q8_32(bytes_, scales)).view(-1)
    expected = (bytes_.astype(np.float32) - 128) * scales[..., None].astype(np.float32)
    assert np.array_equal(dequantise(PackedTensor(Layout.Q8_32, (32, 128), data)), expected.reshape(32, 128))
    single = chance.standard_normal(32).astype(np.float32)
    data = torch.from_numpy(interleave_q8_row(bytes_.reshape(32, 128), single)).view(-1)
    expected = (bytes_.reshape(32, 128).astype(np.float32) - 128) * single[:, None]
    assert np.array_equal(dequantise(PackedTensor(Layout.Q8_ROW, (32, 128), data)), expected)


def test_a_matrix_with_the_wrong_number_of_bytes_is_refused() -> None:
    with pytest.raises(InvalidFormat, match=r"a Q4_32 matrix of shape \[16, 32\] has 320 bytes, not 319"):
        PackedTensor(Layout.Q4_32, (16, 32), torch.zeros(319, dtype=torch.uint8))
