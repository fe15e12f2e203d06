"""What a worker is started with."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from inferloom.formats.checkpoint import Checkpoint


class WorkerJob(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a worker needs to know to host its model. It is the first frame on its socket."""

    model: str
    driver: Literal["native", "dummy"]
    checkpoint: Checkpoint | None = None  # None: a dummy without a source
    device: tuple[str, ...] = ("cpu",)
    dtype: str = "auto"  # of the weights: auto, float32, bfloat16, float16
    activation_dtype: str = "bfloat16"
    kv_dtype: Literal["auto", "int8"] = "auto"  # of keys and values in their pages
    threads: int = 0  # 0: as many as the process may use
    max_model_len: int | None = None
    max_batch_size: int = 512
    max_batch_tokens: int = 10240
    kv_budget_bytes: int = 2 << 30
    kv_most_bytes: int = 0  # that pages may take one day (`Resize`); less than the budget: never more than it
    spill: str = (
        ""  # a file of pages that an earlier worker kept; they are attached where they are this model's
    )
    spill_key: str = ""  # what such files must say they belong to
    gpu_mem_utilization: float = 0.85  # of an accelerator: weights, KV pages and whatever else uses it
    batch_policy: Literal["adaptive", "eager", "greedy"] = "adaptive"
    prefix_cache: bool = True
    speculative_tokens: int = 8  # of the longest draft; 0: no drafts
    draft: Checkpoint | None = None  # of the model that drafts; None: a sequence's own text does
    draft_dtype: str = "auto"
    draft_kv_dtype: Literal["auto", "int8"] = "auto"
    trust_remote_code: bool = False
    options: dict[str, Any] = {}  # of the dummy driver
