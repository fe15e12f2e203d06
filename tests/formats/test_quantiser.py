"""What quantising costs in accuracy, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from inferloom.errors import InvalidFormat
from inferloom.formats import quantiser
from inferloom.formats.interleaving import in_planes
from inferloom.formats.layout import Layout
from inferloom.formats.layouts import PackedTensor, dequantise

QUANTISED = (Layout.Q8_32, Layout.Q8_ROW, Layout.Q8_HALVES, Layout.Q4Z_32)


def back(values: np.ndarray, layout: Layout) -> np.ndarray:
    data = torch.from_numpy(in_planes(quantiser.pack(values.copy(), layout), values.shape[1], layout))
    return dequantise(PackedTensor(layout, values.shape, data)).numpy()


def relative(values: np.ndarray, layout: Layout) -> float:
    return float(np.linalg.norm(back(values, layout) - values) / np.linalg.norm(values))


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * 0.02).astype(np.float32)


@pytest.mark.parametrize(
    ("layout", "bound"),
    [(Layout.Q8_32, 0.0058), (Layout.Q8_ROW, 0.0095), (Layout.Q8_HALVES, 0.0071), (Layout.Q4Z_32, 0.078)],
)
def test_the_relative_error_on_gaussian_weights(layout: Layout, bound: float) -> None:
    for shape in ((256, 576), (256, 1024), (64, 4096), (16, 100)):
        assert relative(weights(*shape), layout) < bound


def test_four_bits_beat_the_plain_minimum_and_maximum() -> None:
    values = weights(256, 1024)
    groups = values.reshape(-1, 32)
    low, high = groups.min(1, keepdims=True), groups.max(1, keepdims=True)
    step = (high - low) / 15
    plain = np.rint((groups - low) / step) * step + low
    assert relative(values, Layout.Q4Z_32) < 0.97 * np.linalg.norm(plain - groups) / np.linalg.norm(groups)


@pytest.mark.parametrize(
    ("layout", "width", "steps"),
    [(Layout.Q8_32, 32, 127), (Layout.Q8_ROW, 512, 127), (Layout.Q8_HALVES, 128, 120)],
)
def test_eight_bits_are_within_half_a_step_of_the_largest(layout: Layout, width: int, steps: int) -> None:
    values = weights(64, 512)
    groups, ours = values.reshape(-1, width), back(values, layout).reshape(-1, width)
    half_step = np.abs(groups).max(1, keepdims=True) / steps / 2
    assert (np.abs(ours - groups) <= half_step * 1.002).all()


@pytest.mark.parametrize("layout", QUANTISED)
def test_zeros_constants_and_tiny_values_survive(layout: Layout) -> None:
    values = np.zeros((16, 128), np.float32)
    assert not back(values, layout).any()
    values[3] = 0.75
    values[4, ::2] = -0.5
    # Q4Z_32's scales are rounded to 3 %.
    assert np.allclose(
        back(values, layout), values, atol=0.75 * (0.032 if layout is Layout.Q4Z_32 else 1 / 254)
    )
    tiny = weights(16, 128) * (1e-2 if layout is Layout.Q4Z_32 else 1e-3)
    assert relative(tiny, layout) < (0.1 if layout is Layout.Q4Z_32 else 0.03)


@pytest.mark.parametrize("layout", QUANTISED)
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(layout: Layout, odd: float) -> None:
    values = weights(16, 128)
    values[7, 5] = odd
    with pytest.raises(InvalidFormat, match="not finite"), np.errstate(all="ignore"):
        quantiser.pack(values, layout)


def test_scales_out_of_reach_of_float16_are_refused() -> None:
    for layout in (Layout.Q8_32, Layout.Q4Z_32):
        with pytest.raises(InvalidFormat, match="a scale in float16 cannot reach"):
            quantiser.pack(weights(16, 128) * 1e10, layout)
    assert relative(weights(16, 128) * 1e10, Layout.Q8_ROW) < 0.01
