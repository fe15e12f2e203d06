"""The KV cache that `transformers` modules see while they run over our pages. Importing this imports transformers.

Keys and values of a layer: [pages, 32, kv_heads, head_dim], each of sizes of its own (they differ in latent attention).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer


@dataclass(frozen=True, slots=True)
class KVShape:
    """Of one layer."""

    heads: int
    key_dim: int
    value_dim: int


@dataclass(frozen=True, slots=True)
class PagePool:
    """One layer's pages."""

    keys: torch.Tensor  # [pages, 32, heads, key_dim]
    values: torch.Tensor  # [pages, 32, heads, value_dim]


@dataclass(frozen=True, slots=True)
class Context:
    """Where one sequence's tokens lie."""

    pages: torch.Tensor  # int64: numbers of its pages, in order
    slots: torch.Tensor  # int64 [rows]: of the rows of this pass, in a pool seen as [pages · 32, heads, dim]
    past: int  # tokens before this pass


class PagedLayer(DynamicLayer):  # type: ignore[misc, no-untyped-call, unused-ignore]
    """One layer's cache for one sequence and one pass: new rows go to the pages, the whole context comes from them.

    Layers with a sliding window keep all their tokens as well: the mask hides what fell out.
    """

    def __init__(self, pool: PagePool, context: Context) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self._pool = pool
        self._context = context
        self._length = context.past
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[1, heads, rows, dim] each → the same of the whole context."""
        self._length = self._context.past + key_states.shape[2]
        return self._through(self._pool.keys, key_states), self._through(self._pool.values, value_states)

    def _through(self, pool: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        pool.flatten(0, 1).index_copy_(0, self._context.slots, states[0].transpose(0, 1).to(pool.dtype))
        context = pool.index_select(0, self._context.pages).flatten(0, 1)[: self._length]
        return context.transpose(0, 1)[None].to(states.dtype)

    def get_seq_length(self) -> int:
        return self._length


def paged_cache(pools: list[PagePool], context: Context) -> Any:
    """The cache of all layers for one pass of one sequence."""
    return Cache(layers=[PagedLayer(pool, context) for pool in pools])


def shapes_of(cache: Any) -> list[KVShape] | str:
    """What each layer of a filled cache holds, or what keeps it from being keys and values of every token."""
    shapes = []
    for layer in cache.layers:
        name = type(layer).__name__
        if name == "DummyLayer":
            return "some of its layers read another layer's keys and values"
        if name not in ("DynamicLayer", "DynamicSlidingWindowLayer"):
            return f"its layers keep a state ({name})"
        if not layer.is_initialized or layer.keys.dim() != 4 or layer.values.dim() != 4:
            return "not every one of its layers has keys and values"
        shapes.append(KVShape(layer.keys.shape[1], layer.keys.shape[3], layer.values.shape[3]))
    return shapes or "it keeps no keys and values"
