"""Native attention over pages, filled by the operator that rotates heads, against dense attention in double precision."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F

from inferloom.kernels.native import library

PAGE = 32
EPS = 1e-6


@dataclass
class Layer:
    """One attention layer; `values` is 0 for a bfloat16 pool, 1 for an int8 one."""

    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    rotary: int = 64
    values: int = 0
    window: int = 0
    soft_cap: float = 0.0
    normed: bool = True
    sinks: torch.Tensor | None = None
    contexts: list[int] = field(default_factory=lambda: [1, 31, 32, 33, 70])
    steps: list[int] = field(default_factory=lambda: [1, 31, 5, 1, 40])  # rows of the last step of each


class Pages:
    """A pool with shuffled pages for the sequences of a layer, and what was written to it."""

    def __init__(self, layer: Layer) -> None:
        native = library.load()
        self.layer = layer
        counts = [-(-context // PAGE) for context in layer.contexts]
        self.starts = [0, *itertools.accumulate(counts)]
        self.table = torch.randperm(self.starts[-1], dtype=torch.int32)
        size = native.kv_page_bytes(layer.values, layer.kv_heads, layer.head_dim)
        room = torch.full(
            (size * self.starts[-1] + 64,), 255, dtype=torch.uint8
        )  # NaN: what was there must not matter
        self._room = room[-room.data_ptr() % 64 :]
        self.pool = native.KvPool(self._room.data_ptr(), size, layer.values, layer.kv_heads, layer.head_dim)

    def page_of(self, sequence: int, position: int) -> int:
        return int(self.table[self.starts[sequence] + position // PAGE])


def rotated(x: torch.Tensor, cos_sin: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    half = cos_sin.shape[1] // 2
    cos, sin = cos_sin[positions.long(), None].double().split(half, dim=-1)
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)


def stored(x: torch.Tensor, values: int) -> torch.Tensor:
    """What a pool keeps of keys or values [..., head_dim]."""
    if values == 0:
        return x.float().bfloat16().double()
    scale = x.abs().amax(-1, keepdim=True) / 127
    return (x / scale).round() * scale


def dense(layer: Layer, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The last rows q [rows, heads, D] of a context k, v [context, kv_heads, D] → [rows, heads · D]."""
    rows, context = len(q), len(k)
    group = layer.heads // layer.kv_heads
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("rhd,chd->hrc", q, k) * layer.head_dim**-0.5
    if layer.soft_cap:
        scores = layer.soft_cap * torch.tanh(scores / layer.soft_cap)
    distance = torch.arange(context - rows, context)[:, None] - torch.arange(context)
    hidden = distance < 0
    if layer.window:
        hidden |= distance >= layer.window
    scores = scores.masked_fill(hidden, -torch.inf)
    if layer.sinks is not None:
        sinks = layer.sinks.double()[:, None, None].expand(-1, rows, 1)
        shares = torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]
    else:
        shares = scores.softmax(-1)
    return torch.einsum("hrc,chd->rhd", shares, v).reshape(rows, -1)


def run(layer: Layer) -> None:
    native = library.load()
    pages = Pages(layer)
    turned, width = layer.heads + layer.kv_heads, layer.head_dim
    total = turned + layer.kv_heads
    cos_sin = torch.rand(max(layer.contexts), layer.rotary, dtype=torch.float64).mul(6)
    half = layer.rotary // 2
    cos_sin = torch.cat([cos_sin[:, :half].cos(), cos_sin[:, :half].sin()], -1).float().contiguous()
    q_norm, k_norm = torch.rand(width) + 0.5, torch.rand(width) + 0.5
    contexts = [torch.randn(context, total, width) for context in layer.contexts]

    def through(rows: torch.Tensor, positions: list[int], numbers: list[int]) -> None:
        where = torch.tensor(positions, dtype=torch.int32)
        targets = torch.tensor(numbers, dtype=torch.int32)
        native.heads(
            rows.data_ptr(),
            total * width,
            len(rows),
            q_norm.data_ptr() if layer.normed else 0,
            k_norm.data_ptr() if layer.normed else 0,
            EPS,
            cos_sin.data_ptr() if layer.rotary else 0,
            layer.rotary,
            layer.heads,
            pages.pool,
            where.data_ptr(),
            targets.data_ptr(),
        )

    queries, starts = [], [0]
    for sequence, (whole, step) in enumerate(zip(contexts, layer.steps, strict=True)):
        for begin, end in ((0, len(whole) - step), (len(whole) - step, len(whole))):
            rows = whole[begin:end].clone()
            if len(rows):
                through(
                    rows, list(range(begin, end)), [pages.page_of(sequence, i) for i in range(begin, end)]
                )
        queries.append(rows.reshape(step, -1))
        starts.append(starts[-1] + step)
    q = torch.cat(queries)
    out = torch.full((len(q), layer.heads * width), torch.nan)
    spec = native.AttentionSpec(
        layer.heads,
        layer.kv_heads,
        width,
        width**-0.5,
        soft_cap=layer.soft_cap,
        window=layer.window,
        sinks=0 if layer.sinks is None else layer.sinks.data_ptr(),
    )
    native.attend(
        spec,
        pages.pool,
        starts,
        layer.contexts,
        pages.starts,
        pages.table.data_ptr(),
        q.data_ptr(),
        total * width,
        out.data_ptr(),
        layer.heads * width,
    )
    for sequence, (whole, step) in enumerate(zip(contexts, layer.steps, strict=True)):
        exact = whole.double()
        norm = torch.cat([q_norm.expand(layer.heads, -1), k_norm.expand(layer.kv_heads, -1)]).double()
        x = exact[:, :turned]
        if layer.normed:
            x = F.rms_norm(x, (width,), None, EPS) * norm
        if layer.rotary:
            x = rotated(x, cos_sin, torch.arange(len(whole)))
        own = slice(starts[sequence], starts[sequence + 1])
        torch.testing.assert_close(
            q[own].view(step, total, width)[:, : layer.heads].double(),
            x[-step:, : layer.heads],
            rtol=1e-5,
            atol=1e-5,
        )
        wanted = dense(
            layer,
            x[-step:, : layer.heads],
            stored(x[:, layer.heads :], layer.values),
            stored(exact[:, turned:], layer.values),
        )
        # Queries and shares are bfloat16 in the products.
        torch.testing.assert_close(out[own].double(), wanted, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("values", [0, 1], ids=["bfloat16 pages", "int8 pages"])
@pytest.mark.parametrize("heads", [(1, 1), (6, 2), (9, 3), (8, 1)], ids=str)
def test_grouped_heads_attend_to_their_own_keys(isa: str, heads: tuple[int, int], values: int) -> None:
    torch.manual_seed(0)
    run(Layer(heads=heads[0], kv_heads=heads[1], values=values))


@pytest.mark.parametrize(
    "layer",
    [
        Layer(head_dim=16, rotary=16),
        Layer(head_dim=80, rotary=20),
        Layer(head_dim=128, rotary=128, normed=False),
        Layer(rotary=0),
        Layer(window=7),
        Layer(window=40, contexts=[130, 64], steps=[60, 1]),
        Layer(soft_cap=1.5),
        Layer(sinks=torch.tensor([0.0, 3.0, -2.0, 8.0])),
        Layer(sinks=torch.ones(4), window=20, soft_cap=5.0, values=1),
        Layer(contexts=[1500, 2100], steps=[9, 1]),
    ],
    ids=lambda layer: (
        f"dim {layer.head_dim}, rotary {layer.rotary}, window {layer.window}, cap {layer.soft_cap}, {len(layer.contexts)}"
    ),
)
def test_every_kind_of_layer_is_dense_attention_of_what_the_pages_hold(isa: str, layer: Layer) -> None:
    torch.manual_seed(1)
    run(layer)


def test_arguments_that_do_not_belong_together_are_refused() -> None:
    native = library.load()
    with pytest.raises(ValueError, match="multiple of kv_heads"):
        native.AttentionSpec(5, 2, 64, 1.0)
    with pytest.raises(ValueError, match="multiple of 16"):
        native.KvPool(64, 1 << 20, 0, 2, 40)
    with pytest.raises(ValueError, match="pages overlap"):
        native.KvPool(64, 64, 0, 2, 64)
