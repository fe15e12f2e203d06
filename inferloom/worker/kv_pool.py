"""How many KV pages a worker's model gets, and what that means for its context."""

from __future__ import annotations

import logging

import torch

from inferloom.engine.pages import kv_pages
from inferloom.errors import OutOfMemory
from inferloom.models.batch import PAGE_SIZE, Executor
from inferloom.worker.messages.job import WorkerJob

log = logging.getLogger(__name__)


def pool_pages(executor: Executor, job: WorkerJob, *, draft: Executor | None = None) -> int:
    """Pages of the pool: what the longest batch can use, or what the budget pays for. Every page of `draft`, a model
    that drafts, stands beside one of the executor's.

    On an accelerator the budget is also bounded by what its weights and other programs have left free. Raises
    `OutOfMemory` where the budget does not pay for one page, or for the context that the configuration asks for; the
    checkpoint's own, where it does not fit, is cut, and the log says so.
    """
    budget, page = job.kv_budget_bytes, executor.kv_bytes_per_page
    page += draft.kv_bytes_per_page if draft is not None else 0
    if executor.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(executor.device)
        budget = min(budget, device_budget(utilization=job.gpu_mem_utilization, total=total, free=free))
    if budget < page:
        raise OutOfMemory(
            f"one KV page ({PAGE_SIZE} tokens) of {job.model} takes {page:,} bytes, but {budget:,} bytes are left for its "
            "KV cache; raise gpu_mem_utilization, serve fewer models at once, or take a smaller model"
        )
    longest = executor.card.max_model_len
    pages = kv_pages(
        max_model_len=longest,
        max_batch_size=job.max_batch_size,
        kv_bytes_per_page=page,
        budget_bytes=budget,
        page_size=PAGE_SIZE,
    )
    if pages * PAGE_SIZE < longest and job.max_model_len is not None:
        needed = -(-longest // PAGE_SIZE) * page
        raise OutOfMemory(
            f"a context of {longest} tokens of {job.model} takes {needed:,} bytes of KV cache, but {budget:,} bytes are "
            f"there for it; lower max_model_len to {pages * PAGE_SIZE}, or leave the model more of [runtime] memory_budget"
        )
    if pages * PAGE_SIZE < longest:
        log.warning(
            "the context of %s is cut from %d to %d tokens: %s bytes of KV cache hold no more",
            job.model,
            longest,
            pages * PAGE_SIZE,
            f"{budget:,}",
        )
    return pages


def most_pages(executor: Executor, job: WorkerJob, pages: int, *, draft: Executor | None = None) -> int:
    """Pages that a pool of `pages` may ever have (`Resize`): untouched ones take no memory where this machine's is used."""
    page = executor.kv_bytes_per_page + (draft.kv_bytes_per_page if draft is not None else 0)
    if executor.device.type != "cpu" or job.kv_most_bytes <= pages * page:
        return pages
    most = kv_pages(
        max_model_len=executor.card.max_model_len,
        max_batch_size=job.max_batch_size,
        kv_bytes_per_page=page,
        budget_bytes=job.kv_most_bytes,
        page_size=PAGE_SIZE,
    )
    return max(pages, most)


def device_budget(*, utilization: float, total: int, free: int) -> int:
    """Bytes of an accelerator that KV pages may take: the part of it that may be used, less what is used already."""
    return max(0, free - int((1.0 - utilization) * total))
