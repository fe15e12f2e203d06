"""The decoder of the Llama family and its relatives: one ragged batch over paged KV, steered by a `DecoderSpec`."""

from __future__ import annotations

import mmap
from dataclasses import dataclass

import torch

from inferloom.errors import OutOfMemory
from inferloom.kernels.base import HeadShape, Kernels
from inferloom.kernels.plan import PAGE_SIZE, Planner
from inferloom.models.batch import Executor, RaggedBatch
from inferloom.models.linears import LinearLike
from inferloom.models.rope import RopeTables
from inferloom.models.spec import DecoderSpec
from inferloom.types import ModelCard


@dataclass(frozen=True, slots=True)
class Layer:
    """Weights of one layer. Norm weights are in the compute dtype; `head_norm` [heads + kv_heads, head_dim]."""

    input_norm: torch.Tensor
    q: LinearLike
    k: LinearLike
    v: LinearLike
    o: LinearLike
    head_norm: torch.Tensor | None
    post_norm: torch.Tensor
    gate: LinearLike
    up: LinearLike
    down: LinearLike
    window: int | None


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    embedding: torch.Tensor  # [vocab_size, hidden_size]
    layers: tuple[Layer, ...]
    norm: torch.Tensor
    head: LinearLike


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
        self._rope = RopeTables(spec.rope, dtype=dtype, device=device)
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
        wanted = pages * self.kv_bytes_per_page
        try:
            if self.device.type == "cpu":
                # Anonymous pages of the kernel: zero without being written, resident only once used.
                block = mmap.mmap(-1, wanted)
                pool = torch.frombuffer(block, dtype=self._dtype).view(shape)
            else:
                pool = torch.zeros(shape, dtype=self._dtype, device=self.device)
        except (OSError, RuntimeError, OverflowError) as error:
            raise OutOfMemory(
                f"{pages} KV pages of {self.kv_bytes_per_page:,} bytes ({wanted / 2**30:.2f} GiB) could not be allocated "
                f"on {self.device}; lower max_model_len, max_batch_size or gpu_mem_utilization"
            ) from error
        self._pools = list(pool)

    def copy_page(self, source: int, target: int) -> None:
        for pool in self._pools:
            pool[target].copy_(pool[source])

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
        cos, sin = self._rope.at(positions, longest=max(batch.context_lens))
        eps = spec.norm_eps
        x = torch.nn.functional.embedding(token_ids, self._weights.embedding).to(self._dtype)
        for layer, pool in zip(self._weights.layers, self._pools, strict=True):
            h = kernels.rms_norm(x, layer.input_norm, eps)
            q = kernels.rope_and_write(
                torch.cat((layer.q(h), layer.k(h), layer.v(h)), dim=1),
                self._shape,
                norm=layer.head_norm,
                eps=eps,
                cos=cos,
                sin=sin,
                pool=pool,
                plan=plan,
            )
            mixed = kernels.paged_attention(q, pool, plan, layer.window)
            if (
                layer is self._weights.layers[-1]
            ):  # from here on rows are on their own: only those asked for go on
                if not batch.logit_rows:
                    return torch.empty(0, self.vocab_size, device=self.device)
                x, mixed = self._wanted(x, mixed, batch.logit_rows, rows=rows)
            x += layer.o(mixed)
            h = kernels.rms_norm(x, layer.post_norm, eps)
            x += layer.down(kernels.gated(layer.gate(h), layer.up(h), spec.activation))
        x = kernels.rms_norm(x, self._weights.norm, eps)
        return self._weights.head(x)[: len(batch.logit_rows)].contiguous().float()

    def _wanted(
        self, x: torch.Tensor, mixed: torch.Tensor, wanted: list[int], *, rows: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows of the residual stream and of the attention's output that logits are asked of, padded."""
        if wanted == list(range(rows)):
            return x, mixed
        padding = self._kernels.padded_rows(len(wanted), self._dtype) - len(wanted)
        index = torch.tensor(wanted + wanted[:1] * padding, device=self.device)
        return x.index_select(0, index), mixed.index_select(0, index)
