"""Which runner runs a model: by the type of its driver."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from inferloom.config.drivers import native_options
from inferloom.config.home import cache_dir
from inferloom.config.quantities import size_bytes
from inferloom.config.schema import Config, ModelConfig
from inferloom.errors import InferloomError, Unsupported
from inferloom.runners.base import ModelRunner
from inferloom.runners.budget import MOST_KV_BYTES, most_kv_bytes, ram_bytes
from inferloom.runners.local import LocalRunner
from inferloom.worker.kv_store import KvStore
from inferloom.worker.pool import WorkerPool

OnDeath = Callable[[InferloomError], None]


def make_runner(
    model: ModelConfig, config: Config, pool: WorkerPool, *, on_death: OnDeath | None = None
) -> ModelRunner:
    """The runner of a declared model; nothing is loaded yet. `on_death` is told when it can answer no more."""
    if model.driver.type not in ("native", "dummy"):
        raise Unsupported(f"driver type {model.driver.type!r}", "this version has native and dummy")
    budget = 0
    if model.driver.type == "native":
        share = native_options(model.driver).gpu_mem_utilization
        # an accelerator belongs to one model, and only its worker can see how much of it is free
        on_cpu = model.driver.device[0].startswith("cpu")
        budget = most_kv_bytes(utilization=share, ram=ram_bytes()) if on_cpu else MOST_KV_BYTES
    return LocalRunner(
        model,
        pool,
        kv_budget_bytes=budget,
        load_timeout=config.server.load_timeout_secs or None,
        on_death=on_death,
        draft=_draft_of(model, config),
        kv_store=_store(config.runtime.kv_store_memory, config.runtime.kv_store_disk, cache_dir()),
    )


@functools.cache
def _store(memory: str, disk: str, cache: Path) -> KvStore | None:
    """The same for all runners of this process; None where nothing is to be kept."""
    in_memory, on_disk = size_bytes(memory, whole=ram_bytes()), size_bytes(disk, whole=None)
    return KvStore(memory=in_memory, disk=on_disk) if in_memory or on_disk else None


def _draft_of(model: ModelConfig, config: Config) -> ModelConfig | None:
    if model.draft is None:
        return None
    return next(one for one in config.model if model.draft in (one.name, *one.aliases))
