"""The native executor: one call into C++ for a whole step of a decoder (`csrc/decoder.h`)."""

from __future__ import annotations

import mmap

import numpy as np
import torch

from inferloom.errors import OutOfMemory
from inferloom.kernels.native import library
from inferloom.models.batch import PAGE_SIZE, Executor, KvDtype, PageTable, RaggedBatch
from inferloom.models.decoder import DecoderWeights
from inferloom.models.native_weights import ACTIVATIONS, NativeWeights
from inferloom.models.rope import RopeSpec
from inferloom.models.spec import DecoderSpec
from inferloom.types import ModelCard

HEAD_DIMS = range(16, 257, 16)  # that the attention operator knows
ROPE_POSITIONS = 1024  # the first tables' length; they grow with the contexts


class NativeDecoder(Executor):
    """Computes in bfloat16 or int8 products with float32 sums, by the layout of each weight; the residual stream is
    float32. KV pages are [pages, layers, bytes of a layer's]: bfloat16, or int8 with a float32 scale for each head of a
    token's key and value, in half the memory. A row's logits are the same bits whatever else is in the batch, for any
    number of threads and however its prompt is cut into steps.

    The logits that `forward` returns lie in a buffer that the next call writes to.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        weights: DecoderWeights,
        *,
        card: ModelCard,
        threads: int | None = None,
        kv_dtype: KvDtype = "auto",
    ) -> None:
        """`threads`: None for torch's number. `kv_dtype`: auto is bfloat16. Raises `ConfigError` where INFERLOOM_ISA names what is not there."""
        library.isa()
        self.spec = spec
        self.card = card
        self.vocab_size = spec.vocab_size
        self.device = torch.device("cpu")
        self._weights = NativeWeights(spec, weights)
        self._weights.spec.int8_kv = kv_dtype == "int8"
        self._decoder = library.load().Decoder(
            self._weights.spec, self._weights.weights, threads or torch.get_num_threads()
        )
        self._ropes = self._weights.ropes
        self._positions = 0  # that the rope tables cover
        self._tables: list[torch.Tensor] = []
        self._pool = np.empty((0, 0, 0), np.uint8)
        self._rows, self._logits = 0, torch.empty(0, spec.vocab_size)
        self._logits_address = 0

    @property
    def kv_bytes_per_page(self) -> int:
        return int(self._decoder.kv_bytes_per_page)

    def allocate_kv(self, pages: int) -> None:
        wanted = pages * self.kv_bytes_per_page
        try:
            # Anonymous pages of the kernel: zero without being written, resident only once used. Private,
            # because shared ones are seldom granted as huge pages.
            block = mmap.mmap(-1, wanted, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            if hasattr(mmap, "MADV_HUGEPAGE"):
                block.madvise(mmap.MADV_HUGEPAGE)
        except (OSError, OverflowError, ValueError) as error:
            raise OutOfMemory(
                f"{pages} KV pages of {self.kv_bytes_per_page:,} bytes ({wanted / 2**30:.2f} GiB) could not be allocated "
                "on cpu; lower max_model_len, max_batch_size or gpu_mem_utilization"
            ) from error
        self._pool = np.frombuffer(block, np.uint8).reshape(pages, self.spec.layers, -1)
        self._decoder.set_kv(self._pool.ctypes.data, pages)

    def copy_page(self, source: int, target: int) -> None:
        self._pool[target] = self._pool[source]

    def page_tables(self) -> list[PageTable]:
        return [PageTable(self._pool.ctypes.data, self._pool.strides[0])]

    def forward(self, batch: RaggedBatch) -> torch.Tensor:
        self._prepare(batch)
        self._decoder.step(*_lists(batch), self._logits_address)
        return self._logits[: len(batch.logit_rows)]

    def forward_best(self, batch: RaggedBatch) -> list[int]:
        self._prepare(batch)
        best: list[int] = self._decoder.best(*_lists(batch), self._logits_address)
        return best

    # --- what benchmarks and `doctor` ask ---------------------------------------------------------------------------

    @property
    def isa(self) -> str:
        """The instruction set whose operators run."""
        return str(self._decoder.isa)

    @property
    def threads(self) -> int:
        return int(self._decoder.threads)

    @property
    def scratch_bytes(self) -> int:
        """Memory that steps have needed so far, without weights and KV pages."""
        return int(self._decoder.scratch_bytes) + self._logits.nbytes

    @property
    def computed_share(self) -> float:
        """Of the output matrix, what the last pass computed exactly; less than 1 where `forward_best` did with bounds of the rest."""
        return float(self._decoder.computed_share)

    def start_profile(self) -> None:
        """Forget what was measured, and measure the stages of the steps that come."""
        self._decoder.profiled = True

    def stop_profile(self) -> dict[str, list[float]]:
        """Microseconds a step, for each stage one number a thread."""
        steps = max(1, self._decoder.profiled_steps)
        stages = {name: [t / steps for t in times] for name, times in self._decoder.profile().items()}
        self._decoder.profiled = False
        return stages

    def _prepare(self, batch: RaggedBatch) -> None:
        """Room for its logits, and rope tables for its contexts. Touches nothing of torch's where all is there: after a step that
        has passed all weights through the caches, a slice of a tensor takes 50 µs."""
        rows = len(batch.logit_rows)
        if rows > self._rows:
            self._rows, self._logits = rows, torch.empty(rows, self.vocab_size)
            self._logits_address = self._logits.data_ptr()
        longest = max(batch.context_lens)
        if longest > self._positions:
            self._turn(min(max(longest, 2 * self._positions, ROPE_POSITIONS), self.spec.max_positions))

    def _turn(self, positions: int) -> None:
        """Rope tables for contexts of up to `positions` tokens."""
        self._tables = [rope_table(rope, positions) for rope in self._ropes]
        for number, (rope, table) in enumerate(zip(self._ropes, self._tables, strict=True)):
            self._decoder.set_rope(number, table.data_ptr(), positions, rope.dim)
        self._positions = positions


def _lists(batch: RaggedBatch) -> tuple[list[int], list[int], list[int], list[list[int]], list[int]]:
    """What the extension reads of a batch, in its order."""
    return batch.token_ids, batch.starts, batch.context_lens, batch.page_tables, batch.logit_rows


def rope_table(rope: RopeSpec, positions: int) -> torch.Tensor:
    """float32 [positions, rope.dim]: the cosines of each position, then its sines."""
    angles = torch.outer(torch.arange(positions, dtype=torch.float32), rope.frequencies())
    return torch.cat((angles.cos(), angles.sin()), dim=1).mul_(rope.attention_factor)


def supports(spec: DecoderSpec, *, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why a model cannot run on the native executor; None: it can."""
    if device.type != "cpu":
        return "the native operators run on the CPU"
    if dtype != torch.bfloat16:
        return f"activation_dtype is {str(dtype).removeprefix('torch.')}; the native operators compute in bfloat16"
    if not library.available():
        return library.reason()
    if spec.mixture is not None:
        return "the native step knows no mixture of experts"
    if spec.activation not in ACTIVATIONS:
        return f"the native step knows no activation {spec.activation!r}"
    if spec.head_dim not in HEAD_DIMS:
        return f"heads of {spec.head_dim} elements: the native attention takes multiples of 16 up to 256"
    return None


assert PAGE_SIZE == 32  # kPageSize of csrc/operators.h
