"""The reference operators against the formulas, written out plainly, on fresh random input."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from inferloom.kernels.base import HeadShape
from inferloom.kernels.plan import AttentionPlan, Planner
from inferloom.kernels.reference import ReferenceKernels

KERNELS = ReferenceKernels()
CPU = torch.device("cpu")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
PAGES = 40


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


def close(ours: torch.Tensor, formula: torch.Tensor) -> bool:
    error = (ours.double() - formula).abs().max() / formula.abs().max()
    return bool(error <= TOLERANCE[ours.dtype])


def test_linear(dtype: torch.dtype) -> None:
    x, weight, bias = torch.randn(5, 48).to(dtype), torch.randn(70, 48).to(dtype), torch.randn(70).to(dtype)
    assert close(KERNELS.linear(x, weight, bias), x.double() @ weight.double().T + bias.double())
    assert close(KERNELS.linear(x, weight, None), x.double() @ weight.double().T)


@pytest.mark.parametrize("rows", [1, 8, 16, 24, 32, 48, 100])
def test_linear_in_every_number_of_rows(rows: int, dtype: torch.dtype) -> None:
    for features in ((48, 160), (160, 48)):
        x, weight = torch.randn(rows, features[0]).to(dtype), torch.randn(features[1], features[0]).to(dtype)
        assert close(KERNELS.linear(x, weight, None), x.double() @ weight.double().T)


def test_rms_norm(dtype: torch.dtype) -> None:
    x, weight = torch.randn(5, 48).to(dtype), torch.randn(48).to(dtype)
    square = (x.double() ** 2).mean(-1, keepdim=True)
    assert close(KERNELS.rms_norm(x, weight, 1e-5), x.double() / (square + 1e-5).sqrt() * weight.double())


def test_layer_norm(dtype: torch.dtype) -> None:
    x, weight, bias = (torch.randn(shape).to(dtype) for shape in ((5, 48), (48,), (48,)))
    wide = x.double() - x.double().mean(-1, keepdim=True)
    scaled = wide / ((wide**2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    assert close(KERNELS.layer_norm(x, weight, bias, 1e-5), scaled + bias.double())
    assert close(KERNELS.layer_norm(x, weight, None, 1e-5), scaled)


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "relu"])
def test_gated(activation: str, dtype: torch.dtype) -> None:
    gate, up = torch.randn(5, 48).to(dtype), torch.randn(5, 48).to(dtype)
    g = gate.double()
    formula = {
        "silu": g / (1 + (-g).exp()),
        "gelu": g * 0.5 * (1 + torch.erf(g / 2**0.5)),
        "gelu_tanh": g * 0.5 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (g + 0.044715 * g**3))),
        "relu": g.clamp(min=0),
    }[activation]
    assert close(KERNELS.gated(gate.clone(), up, activation), formula * up.double())
    assert close(KERNELS.gated(gate, None, activation), formula)


@pytest.mark.parametrize("turned_part", [16, 6, 0])
@pytest.mark.parametrize("normed", [True, False])
def test_rope_and_write(normed: bool, turned_part: int, dtype: torch.dtype) -> None:
    shape, rows = HeadShape(heads=4, kv_heads=2, head_dim=16), 6
    pool = torch.randn(PAGES, 2, 2, 32, 16).to(dtype)
    # Three rows that end a page and begin the next, three that lie within one; two rows of padding.
    positions = [31, 32, 33, 5, 6, 7]
    plan = Planner(kv_heads=2, head_dim=16, windows=[None], dtype=dtype, device=CPU).plan(
        positions=positions, starts=[0, 3, 6], context_lens=[34, 8], page_tables=[[9, 3], [7]], padded_rows=8
    )
    qkv = torch.randn(8, 8 * 16).to(dtype)
    norm = torch.randn(6, 16).to(dtype) if normed else None
    angles = torch.rand(8, 1, turned_part // 2).double() * 6
    cos = torch.cat((angles.cos(), angles.cos()), -1).to(dtype) if turned_part else None
    sin = torch.cat((-angles.sin(), angles.sin()), -1).to(dtype) if turned_part else None
    heads = qkv.double().view(8, 8, 16)[:rows]
    turned = heads[:, :6]
    if norm is not None:
        turned = turned / ((turned**2).mean(-1, keepdim=True) + 1e-6).sqrt() * norm.double()
    part, rest = turned[..., :turned_part], turned[..., turned_part:]
    half = torch.cat((-part[..., turned_part // 2 :], part[..., : turned_part // 2]), -1)
    plain = angles[:rows].repeat(1, 1, 2)
    turned = torch.cat((part * plain.cos() + half * plain.sin(), rest), -1)
    before = pool.clone()

    q = KERNELS.rope_and_write(
        qkv.clone(), shape, norm=norm, eps=1e-6, cos=cos, sin=sin, pool=pool, plan=plan
    )

    assert close(q, turned[:, :4])
    for row, (page, offset) in enumerate([(9, 31), (3, 0), (3, 1), (7, 5), (7, 6), (7, 7)]):
        assert close(pool[page, 0, :, offset], turned[row, 4:])
        assert torch.equal(pool[page, 1, :, offset], qkv.view(8, 8, 16)[row, 6:])
    assert torch.equal(pool[9, :, :, :31], before[9, :, :, :31])  # what was there stays
    assert not pool[3, :, :, 2:].any()  # a page begun is cleared


def naive_attention(
    q: torch.Tensor,
    pool: torch.Tensor,
    starts: list[int],
    lens: list[int],
    tables: list[list[int]],
    window: int | None,
    *,
    scale: float = 0.25,
    soft_cap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    rows, heads, dim = q.shape
    out = torch.zeros(rows, heads, dim, dtype=torch.float64)
    for i, table in enumerate(tables):
        keys, values = (
            pool[table, part].transpose(1, 2).flatten(0, 1)[: lens[i]].double() for part in (0, 1)
        )
        for row in range(starts[i], starts[i + 1]):
            position = lens[i] - (starts[i + 1] - row)
            low = 0 if window is None else max(0, position + 1 - window)
            for head in range(heads):
                kv = head * keys.shape[1] // heads
                scores = keys[low : position + 1, kv] @ q[row, head].double() * scale
                if soft_cap is not None:
                    scores = soft_cap * (scores / soft_cap).tanh()
                if sinks is not None:
                    scores = torch.cat((scores, sinks[head : head + 1].double()))
                weights = scores.softmax(0)[: position + 1 - low]
                out[row, head] = weights @ values[low : position + 1, kv]
    return out.flatten(1)


BATCHES = {
    "one decode": ([1], [70]),
    "decodes of one padded length": ([1, 1, 1], [65, 96, 80]),
    "decodes of several": ([1, 1, 1, 1], [1, 33, 300, 64]),
    "a whole prefill": ([150], [150]),
    "a chunk after a context": ([140], [290]),
    "decodes among chunks": ([1, 50, 1, 130, 2], [40, 50, 289, 200, 33]),
}


@pytest.mark.parametrize("window", [None, 1, 40, 1000])
@pytest.mark.parametrize("name", BATCHES)
def test_paged_attention(name: str, window: int | None, dtype: torch.dtype) -> None:
    counts, lens = BATCHES[name]
    starts = [sum(counts[:i]) for i in range(len(counts) + 1)]
    order = iter(torch.randperm(PAGES).tolist())
    tables = [[next(order) for _ in range(-(-length // 32))] for length in lens]
    plan = plan_of(counts, starts, lens, tables, window, dtype)
    q = torch.randn(starts[-1], 6, 16).to(dtype)
    pool = torch.randn(PAGES, 2, 2, 32, 16).to(dtype)

    ours = KERNELS.paged_attention(q, pool, plan, window)

    assert close(ours[: starts[-1]], naive_attention(q, pool, starts, lens, tables, window))
    assert not ours[starts[-1] :].any()


@pytest.mark.parametrize(
    "options",
    [
        {"scale": 0.7},
        {"soft_cap": 1.5},
        {"sinks": torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0, 3.0])},
        {"scale": 0.4, "soft_cap": 2.0, "sinks": torch.linspace(-1, 2, 6)},
    ],
    ids=["scale", "soft cap", "sinks", "all"],
)
def test_paged_attention_with_a_scale_a_soft_cap_and_sinks(
    options: dict[str, Any], dtype: torch.dtype
) -> None:
    counts, lens = BATCHES["decodes among chunks"]
    starts = [sum(counts[:i]) for i in range(len(counts) + 1)]
    order = iter(torch.randperm(PAGES).tolist())
    tables = [[next(order) for _ in range(-(-length // 32))] for length in lens]
    plan = plan_of(counts, starts, lens, tables, 60, dtype)
    q = torch.randn(starts[-1], 6, 16).to(dtype)
    pool = torch.randn(PAGES, 2, 2, 32, 16).to(dtype)

    ours = KERNELS.paged_attention(q, pool, plan, 60, **options)

    assert close(ours[: starts[-1]], naive_attention(q, pool, starts, lens, tables, 60, **options))


def plan_of(
    counts: list[int],
    starts: list[int],
    lens: list[int],
    tables: list[list[int]],
    window: int | None,
    dtype: torch.dtype,
) -> AttentionPlan:
    positions = [p for n, length in zip(counts, lens, strict=True) for p in range(length - n, length)]
    rows = KERNELS.padded_rows(len(positions), dtype)
    return Planner(kv_heads=2, head_dim=16, windows=[window], dtype=dtype, device=CPU).plan(
        positions=positions, starts=starts, context_lens=lens, page_tables=tables, padded_rows=rows
    )


@pytest.mark.parametrize("features", [(64, 64), (576, 192), (96, 1536)])
def test_a_row_of_linear_has_the_same_bits_in_any_padded_batch(features: tuple[int, int]) -> None:
    weight, rows = torch.randn(features[1], features[0]), torch.randn(70, features[0])

    def padded(count: int) -> torch.Tensor:
        x = torch.zeros(KERNELS.padded_rows(count, torch.float32), features[0])
        x[:count] = rows[:count]
        return KERNELS.linear(x, weight, None)[:count]

    whole = padded(70)
    for count in (1, 2, 3, 4, 5, 7, 8, 9, 12, 17, 33, 64):
        assert torch.equal(padded(count), whole[:count]), f"{count} rows"
