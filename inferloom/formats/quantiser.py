"""Floats → the quantised layouts: scales and minima chosen for the least squared error. numpy alone.

Relative root-mean-square error on normally distributed weights: Q8_ROW 0.7 to 0.9 % (a row of 1,024 to 4,096), Q8_32 0.5 %,
Q4_32 7.3 %, Q4Z_32 7.5 %. Rows are independent: a matrix may be packed in pieces, by several threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from inferloom.errors import InvalidFormat
from inferloom.formats import dither
from inferloom.formats.interleaving import (
    LEVEL_BIAS,
    LEVELS_OF_STEP,
    ZERO_MASK,
    interleave_q4_pairs,
    interleave_q8_32,
    interleave_q8_halves,
    interleave_q8_row,
)
from inferloom.formats.layout import COLUMNS, GROUP, HALVES_GROUP, Layout

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

_FITS = 3  # rounds of fitting a group's scale and minimum; more gain under 1 % of the error
_TINY = np.float32(1e-30)
_STEPS = 15  # of four bits
_MIDDLE_ZERO = LEVEL_BIAS - LEVELS_OF_STEP * _STEPS // 2  # of a group that reaches as far down as up


def pack(values: Floats, layout: Layout) -> Bytes:
    """Rows [rows, columns], rows a multiple of 16, as blocks of Q8_ROW, Q8_HALVES, Q4_DITHERED, Q8_32 or Q4Z_32: [rows / 16, bytes].
    Raises `InvalidFormat` for values that are not finite or out of its scales' range."""
    packers = {
        Layout.Q8_ROW: pack_q8_row,
        Layout.Q8_HALVES: pack_q8_halves,
        Layout.Q4_DITHERED: pack_q4_dithered,
        Layout.Q8_32: pack_q8_32,
        Layout.Q4Z_32: pack_q4z_32,
    }
    return packers[layout](values)


def pack_q8_row(values: Floats) -> Bytes:
    """One scale a row: its largest magnitude is 127 steps."""
    values = _whole(values, Layout.Q8_ROW)
    scales = _finite(np.maximum(values.max(axis=1), -values.min(axis=1))) / np.float32(127)
    steps = values * _inverse(scales)[:, None]
    return interleave_q8_row(_biased(steps), scales)


def pack_q8_halves(values: Floats) -> Bytes:
    """A scale for each 128 values of a row: the largest magnitude is 120 steps, so that a byte has room for its column's dither."""
    values = _whole(values, Layout.Q8_HALVES)
    rows = len(values)
    groups = values.reshape(rows, -1, HALVES_GROUP)
    scales = _finite(np.maximum(groups.max(axis=2), -groups.min(axis=2))) / np.float32(dither.BIAS)
    steps = groups * _inverse(scales)[..., None]
    np.rint(steps, out=steps)
    np.clip(steps, -dither.BIAS, dither.BIAS, out=steps)
    steps += dither.whole(values.shape[1]).astype(np.float32).reshape(-1, HALVES_GROUP) + dither.BIAS
    return interleave_q8_halves(steps.astype(np.uint8).reshape(rows, -1), scales)


def pack_q4_dithered(values: Floats) -> Bytes:
    """The upper halves of such bytes, without the lower ones: a float16 scale for each 32 values, which are not rounded before
    they are cut, and a dither in sixteenths of a step."""
    values = _whole(values, Layout.Q4_DITHERED)
    rows, columns = values.shape
    groups = values.reshape(rows, -1, GROUP)
    scales = _half_above(
        _finite(np.maximum(groups.max(axis=2), -groups.min(axis=2))) / np.float32(dither.BIAS)
    )
    steps = groups * _inverse(scales.astype(np.float32))[..., None]
    np.clip(steps, -dither.BIAS, dither.BIAS, out=steps)
    steps += dither.sixteenths(columns).astype(np.float32).reshape(-1, GROUP) / 16 + dither.BIAS
    numbers = steps.astype(np.uint8) >> np.uint8(4)
    return interleave_q4_pairs(numbers[..., : GROUP // 2] | numbers[..., GROUP // 2 :] << np.uint8(4), scales)


def pack_q8_32(values: Floats) -> Bytes:
    """A float16 scale for each 32 values of a row, rounded upwards so that the largest still fits."""
    values = _whole(values, Layout.Q8_32)
    rows = len(values)
    groups = _turned(values)
    exact = _finite(np.maximum(groups.max(axis=0), -groups.min(axis=0))) / np.float32(127)
    scales = _half_above(exact)
    groups *= _inverse(scales.astype(np.float32))
    return interleave_q8_32(_biased(groups).T.reshape(rows, -1, GROUP), scales.reshape(rows, -1))


def pack_q4z_32(values: Floats) -> Bytes:
    """A scale and a zero point for each 32 values of a row, in sixteen bits together: a float16 whose low six bits are the
    zero point in quarters of a step, and part of the scale all the same.

    From the smallest and largest value on, each round assigns the nearest steps and then fits scale and minimum to them
    by least squares, which never makes the error larger (Lloyd's method, with steps that stay equally wide).
    """
    values = _whole(values, Layout.Q4Z_32)
    rows = len(values)
    groups = _turned(values)
    least, most = np.minimum(groups.min(axis=0), 0), np.maximum(groups.max(axis=0), 0)
    widest = (_finite(most) - _finite(least)) / np.float32(_STEPS)
    scale, minimum = _fitted(groups, widest, least)
    # A grid that does not reach zero has no zero point: it becomes the one from zero to the largest magnitude.
    offset = minimum * _inverse(scale)
    within = (scale > 0) & (offset <= _offset(ZERO_MASK)) & (offset >= _offset(0))
    scale, minimum = np.where(within, scale, widest), np.where(within, minimum, least)
    halves = _with_zero(scale, minimum)
    scale, offset = halves.astype(np.float32), _offset(halves.view(np.uint16) & ZERO_MASK)
    steps = groups * _inverse(scale)
    steps -= offset
    np.rint(steps, out=steps)
    np.clip(steps, 0, _STEPS, out=steps)
    whole = steps.astype(np.uint8)
    nibbles = np.ascontiguousarray((whole[: GROUP // 2] | whole[GROUP // 2 :] << 4).T)
    return interleave_q4_pairs(nibbles.reshape(rows, -1, GROUP // 2), halves.reshape(rows, -1))


def _fitted(groups: Floats, scale: Floats, minimum: Floats) -> tuple[Floats, Floats]:
    """Scale and minimum of each column of `groups` [32, n], from first ones."""
    total = groups.sum(axis=0)
    scratch, steps = np.empty_like(groups), np.empty_like(groups)
    for _ in range(_FITS):
        np.subtract(groups, minimum, out=steps)
        steps *= _inverse(scale)
        np.rint(steps, out=steps)
        np.clip(steps, 0, _STEPS, out=steps)
        count = steps.sum(axis=0)
        squares = np.multiply(steps, steps, out=scratch).sum(axis=0)
        product = np.multiply(steps, groups, out=scratch).sum(axis=0)
        spread = GROUP * squares - count * count
        fitted = spread > 0  # otherwise all values have the same step, and it stays
        spread = np.where(fitted, spread, 1)
        scale = np.where(fitted, (GROUP * product - count * total) / spread, scale)
        minimum = np.where(fitted, (total * squares - count * product) / spread, minimum)
    return scale, minimum


def _with_zero(scale: Floats, minimum: Floats) -> NDArray[np.float16]:
    """The scales with their zero points in the low six bits. The upper bits round the scale to 3 %; the zero point then
    keeps the middle of the sixteen steps where it was."""
    middle = minimum + np.float32(_STEPS / 2) * scale
    bits = _half(scale).view(np.uint16).astype(np.int32)
    bits = (bits + (ZERO_MASK + 1) // 2 - _MIDDLE_ZERO).clip(0) & ~ZERO_MASK
    rounded = (bits | _MIDDLE_ZERO).astype(np.uint16).view(np.float16).astype(np.float32)
    offset = middle / rounded - np.float32(_STEPS / 2)
    zeros = np.rint(offset * LEVELS_OF_STEP).clip(-LEVEL_BIAS, ZERO_MASK - LEVEL_BIAS).astype(np.int32)
    bits = np.where(scale > _TINY, bits | zeros + LEVEL_BIAS, 0)
    return bits.astype(np.uint16).view(np.float16)


def _offset(zeros: NDArray[Any] | int) -> Floats:
    """What a zero point adds to the numbers 0 … 15, in steps."""
    return (np.asarray(zeros, np.float32) - LEVEL_BIAS) / np.float32(LEVELS_OF_STEP)


def _inverse(scales: Floats) -> Floats:
    """1 / scale; 0 for groups without any spread, whose values are all the first step."""
    whole = np.abs(scales) > _TINY
    return np.where(whole, 1 / np.where(whole, scales, 1), 0).astype(np.float32, copy=False)


def _biased(steps: Floats) -> Bytes:
    """Rounded in place, limited to −127 … 127 and raised by 128."""
    np.rint(steps, out=steps)
    np.clip(steps, -127, 127, out=steps)
    steps += 128
    return steps.astype(np.uint8)


def _whole(values: Floats, layout: Layout) -> Floats:
    """With columns of zeros up to a whole number of the layout's groups."""
    missing = -values.shape[1] % COLUMNS[layout]
    return np.pad(values, ((0, 0), (0, missing))) if missing else values


def _turned(values: Floats) -> Floats:
    """[32, groups]: sums and extremes of a group then run over whole vectors."""
    return np.ascontiguousarray(values.reshape(-1, GROUP).T)


def _finite(values: Floats) -> Floats:
    if not np.isfinite(values).all():
        raise InvalidFormat("the weights hold values that are not finite")
    return values


def _half_above(values: Floats) -> NDArray[np.float16]:
    """The float16 that are not below."""
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
        return _reached(np.where(half < values, np.nextafter(half, np.float16(np.inf)), half))


def _half(values: Floats) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        return _reached(values.astype(np.float16))


def _reached(half: NDArray[np.float16]) -> NDArray[np.float16]:
    if not np.isfinite(half).all():
        raise InvalidFormat("the weights hold values that a scale in float16 cannot reach")
    return half
