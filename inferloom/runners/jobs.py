"""What a worker is told to host, from a model's configuration."""

from __future__ import annotations

import msgspec

from inferloom.config.drivers import dummy_options, native_options
from inferloom.config.schema import ModelConfig
from inferloom.errors import LoadFailed
from inferloom.formats.checkpoint import Checkpoint
from inferloom.text.codec import TextCodec
from inferloom.worker.messages.job import WorkerJob


def native_job(
    model: ModelConfig,
    checkpoint: Checkpoint | None,
    *,
    devices: tuple[str, ...],
    kv_budget_bytes: int,
    kv_most_bytes: int = 0,
    draft: tuple[ModelConfig, Checkpoint] | None = None,
    spill: str = "",
    spill_key: str = "",
) -> WorkerJob:
    """Our engine over a checkpoint. Raises `LoadFailed` for more than one device."""
    if len(devices) > 1:
        raise LoadFailed(
            f"{model.name} lists the devices {', '.join(devices)}, but this version runs a model on one: tensor "
            "parallelism comes with a later version; leave one device in [model.driver] device"
        )
    options = native_options(model.driver)
    return WorkerJob(
        model=model.name,
        driver="native",
        checkpoint=checkpoint,
        device=devices,
        dtype=model.dtype,
        activation_dtype=model.driver.activation_dtype,
        kv_dtype=options.kv_dtype,
        threads=options.threads,
        max_model_len=model.max_model_len,
        max_batch_size=options.max_batch_size,
        max_batch_tokens=options.max_batch_tokens,
        kv_budget_bytes=kv_budget_bytes,
        kv_most_bytes=kv_most_bytes,
        spill=spill,
        spill_key=spill_key,
        gpu_mem_utilization=options.gpu_mem_utilization,
        batch_policy=model.scheduler.batch_policy,
        prefix_cache=options.prefix_cache,
        speculative_tokens=options.speculative_tokens if options.speculation == "auto" else 0,
        draft=draft[1] if draft is not None else None,
        draft_dtype=draft[0].dtype if draft is not None else "auto",
        draft_kv_dtype=native_options(draft[0].driver).kv_dtype if draft is not None else "auto",
        trust_remote_code=model.trust_remote_code,
    )


def dummy_job(model: ModelConfig, codec: TextCodec, *, kv_budget_bytes: int) -> WorkerJob:
    """A scripted model. The worker knows no tokenizer, so its script travels as tokens."""
    options = dummy_options(model.driver)
    script = msgspec.structs.asdict(options)
    text = script.pop("text")
    script.update(
        tokens=codec.encode(text, add_special_tokens=False) or [0],
        end_token=min(codec.eos_token_ids, default=None),
        vocab_size=codec.vocab_size,
    )
    return WorkerJob(
        model=model.name,
        driver="dummy",
        max_model_len=model.max_model_len,
        kv_budget_bytes=kv_budget_bytes,
        options=script,
    )
