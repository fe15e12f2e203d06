"""The decoder of all families: one ragged batch over paged KV, steered by a `DecoderSpec`."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from inferloom.formats.layouts import PackedTensor
from inferloom.kernels.base import HeadShape, Kernels
from inferloom.kernels.plan import PAGE_SIZE, Planner
from inferloom.models.batch import Executor, PageTable, RaggedBatch
from inferloom.models.kv_memory import no_room, tables_of, zeroed
from inferloom.models.linears import LinearLike
from inferloom.models.mlp import MLP, Mixture
from inferloom.models.norms import Norm, normed
from inferloom.models.rope import RopeSpec, RopeTables
from inferloom.models.spec import DecoderSpec
from inferloom.types import ModelCard


@dataclass(frozen=True, slots=True)
class Layer:
    """Weights of one layer, named as in `DecoderSpec`; None: the model has nothing in that place.

    Norm weights are in the compute dtype or float32; `head_norm` [heads + kv_heads, head_dim] normalises each head of q and
    k, `q_norm` and `k_norm` all heads of a row as one.
    """

    input_norm: Norm | None
    q: LinearLike
    k: LinearLike
    v: LinearLike
    o: LinearLike
    head_norm: torch.Tensor | None
    q_norm: Norm | None
    k_norm: Norm | None
    attention_out_norm: Norm | None
    mlp_norm: Norm | None
    mlp: MLP | Mixture
    mlp_out_norm: Norm | None
    rope: RopeSpec | None
    window: int | None


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    embedding: torch.Tensor | PackedTensor  # [vocab_size, hidden_size]
    positions: torch.Tensor | None  # [max_positions, hidden_size]
    layers: tuple[Layer, ...]
    norm: Norm
    head: LinearLike
    screen: PackedTensor | None = None  # of the head, for executors that look for the greatest logit alone


class Decoder(Executor):
    """The reference executor: operator by operator through `Kernels`, on any device.

    KV pool: [layers, pages, 2 (k, v), kv_heads, 32, head_dim] in the compute dtype (see `kernels.plan`).
    """

    def __init__(
        self,
        spec: DecoderSpec,
        weights: DecoderWeights,
        *,
        kernels: Kernels,
        card: ModelCard,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.spec = spec
        self.card = card
        self.vocab_size = spec.vocab_size
        self.device = device
        self._weights = weights
        self._kernels = kernels
        self._dtype = dtype
        self._shape = HeadShape(spec.heads, spec.kv_heads, spec.head_dim)
        self._ropes = {
            rope: RopeTables(rope, dtype=dtype, device=device) for rope in spec.ropes if rope is not None
        }
        self._planner = Planner(
            kv_heads=spec.kv_heads,
            head_dim=spec.head_dim,
            windows=(layer.window for layer in weights.layers),
            dtype=dtype,
            device=device,
        )
        self._pools: list[torch.Tensor] = []

    @property
    def kv_bytes_per_page(self) -> int:
        spec = self.spec
        return spec.layers * PAGE_SIZE * 2 * spec.kv_heads * spec.head_dim * self._dtype.itemsize

    def allocate_kv(self, pages: int) -> None:
        spec = self.spec
        shape = (spec.layers, pages, 2, spec.kv_heads, PAGE_SIZE, spec.head_dim)
        try:
            pool = zeroed(shape, dtype=self._dtype, device=self.device)
        except (OSError, RuntimeError, OverflowError) as error:
            raise no_room(pages, self.kv_bytes_per_page, self.device) from error
        self._pools = list(pool)

    def copy_page(self, source: int, target: int) -> None:
        for pool in self._pools:
            pool[target].copy_(pool[source])

    def page_tables(self) -> list[PageTable]:
        return tables_of(self._pools)

    @torch.inference_mode()
    def forward(self, batch: RaggedBatch) -> torch.Tensor:
        spec, kernels = self.spec, self._kernels
        rows = len(batch.token_ids)
        padded = kernels.padded_rows(rows, self._dtype)
        plan = self._planner.plan(
            positions=batch.positions,
            starts=batch.starts,
            context_lens=batch.context_lens,
            page_tables=batch.page_tables,
            padded_rows=padded,
        )
        token_ids = torch.tensor(batch.token_ids + [0] * (padded - rows), device=self.device)
        positions = torch.tensor(batch.positions + [0] * (padded - rows), device=self.device)
        turns = {
            rope: tables.at(positions, longest=max(batch.context_lens))
            for rope, tables in self._ropes.items()
        }
        x = self._embedded(token_ids, positions)
        for layer, pool in zip(self._weights.layers, self._pools, strict=True):
            h = normed(x, layer.input_norm)
            q, k = normed(layer.q(h), layer.q_norm), normed(layer.k(h), layer.k_norm)
            cos, sin = turns[layer.rope] if layer.rope else (None, None)
            q = kernels.rope_and_write(
                torch.cat((q, k, layer.v(h)), dim=1),
                self._shape,
                norm=layer.head_norm,
                eps=spec.norm_eps,
                cos=cos,
                sin=sin,
                pool=pool,
                plan=plan,
            )
            mixed = kernels.paged_attention(
                q, pool, plan, layer.window, scale=spec.attention_scale, soft_cap=spec.attention_soft_cap
            )
            if (
                layer is self._weights.layers[-1]
            ):  # from here on rows are on their own: only those asked for go on
                if not batch.logit_rows:
                    return torch.empty(0, self.vocab_size, device=self.device)
                x, mixed = self._wanted(x, mixed, batch.logit_rows, rows=rows)
            attended = normed(layer.o(mixed), layer.attention_out_norm)
            if spec.parallel_residual:
                h = normed(x, layer.mlp_norm)
                x.add_(attended, alpha=spec.residual_factor)
            else:
                x.add_(attended, alpha=spec.residual_factor)
                h = normed(x, layer.mlp_norm)
            x.add_(normed(layer.mlp(h), layer.mlp_out_norm), alpha=spec.residual_factor)
        return self._logits(self._weights.norm(x), len(batch.logit_rows))

    def _embedded(self, token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """The residual stream before the first layer: [rows, hidden_size] in the compute dtype."""
        weights, factor = self._weights, self.spec.embedding_factor
        if isinstance(weights.embedding, PackedTensor):
            x = weights.embedding.rows(token_ids).to(self.device, self._dtype)
        else:
            x = torch.nn.functional.embedding(token_ids, weights.embedding).to(self._dtype)
        if factor != 1:
            x.mul_(torch.tensor(factor, dtype=self._dtype))
        if weights.positions is not None:
            x.add_(weights.positions.index_select(0, positions))
        return x

    def _logits(self, x: torch.Tensor, rows: int) -> torch.Tensor:
        """float32 [rows, vocab_size], of the first rows of x."""
        spec = self.spec
        logits = self._weights.head(x)[:rows].contiguous().float()
        if spec.logit_factor != 1:
            logits = logits * spec.logit_factor
        if spec.logit_soft_cap is not None:
            logits = (logits / spec.logit_soft_cap).tanh_().mul_(spec.logit_soft_cap)
        return logits

    def _wanted(
        self, x: torch.Tensor, mixed: torch.Tensor, wanted: list[int], *, rows: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows of the residual stream and of the attention's output that logits are asked of, padded."""
        if wanted == list(range(rows)):
            return x, mixed
        padding = self._kernels.padded_rows(len(wanted), self._dtype) - len(wanted)
        index = torch.tensor(wanted + wanted[:1] * padding, device=self.device)
        return x.index_select(0, index), mixed.index_select(0, index)
