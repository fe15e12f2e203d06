"""`GET /v1/models`, `GET /v1/models/{id}`."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET

from inferloom.errors import ModelNotFound
from inferloom.gateway.call import Call
from inferloom.gateway.service import Service
from inferloom.gateway.wire.models import (
    LastLoad,
    MemoryBytes,
    ModelDetails,
    ModelList,
    ModelNow,
    ModelObject,
)

if TYPE_CHECKING:
    from inferloom.catalog.catalog import Entry
    from inferloom.catalog.lifecycle import ModelBytes, ModelStatus

DEFAULT = "default"


async def list_models(service: Service, call: Call) -> None:
    """The entry `default` first, then the models as they are configured."""
    catalog = service.catalog
    entries = catalog.entries()
    data: list[ModelObject] = []
    if entries:
        default = catalog.default
        if default.id == DEFAULT:  # a model of that name is listed once
            entries = [default, *(entry for entry in entries if entry is not default)]
        else:
            data.append(ModelObject(id=DEFAULT, created=int(default.created), root=default.id))
    data += [
        ModelObject(
            id=entry.id,
            created=int(entry.created),
            root=_root(entry),
            status=catalog.status(entry.id).word,
            aliases=list(entry.aliases) or UNSET,
        )
        for entry in entries
    ]
    await call.json(ModelList(data=data))


async def show_model(service: Service, call: Call) -> None:
    """One model, by id, alias or `default`; the id is echoed as it was asked for."""
    asked: str = call.scope["path_params"]["model_id"]
    if not asked:
        raise ModelNotFound(
            "model not found: the path ends without a name; GET /v1/models lists them.", param="model"
        )
    entry, _ = service.resolve(call, asked)
    await call.json(details(service, entry, asked))


def details(service: Service, entry: Entry, asked: str) -> ModelDetails:
    """All there is to say of a model, under the name it was asked for by."""
    config = entry.config
    status = service.catalog.status(entry.id)
    card = status.card
    now = time.monotonic()
    unix = time.time() - now
    held = status.bytes
    return ModelDetails(
        **msgspec.structs.asdict(model_now(status, asked)),
        created=int(entry.created),
        root=_root(entry),
        name=entry.id,
        aliases=list(entry.aliases),
        default=entry is service.catalog.default,
        retry_after=None if status.retry_at is None else max(0.0, round(status.retry_at - now, 3)),
        bytes=None if held is None else _memory(held),
        leases=status.leases,
        waiting=status.waiting,
        yielding=status.yielding,
        expected_secs=None if status.expected_secs is None else round(status.expected_secs, 3),
        expires_at=None if status.expires_at is None else round(status.expires_at + unix, 3),
        keep_alive=-1 if math.isinf(status.keep_alive) else status.keep_alive,
        pinned=status.pinned,
        priority=status.priority,
        group=status.group,
        shares=list(status.shares),
        replacing=status.replacing,
        last_load=_last_load(status),
        loads=status.loads,
        evictions=status.evictions,
        driver=config.driver.type,
        system_prompt=config.system_prompt,
        parameters=card.parameters if card else None,
        format=card.format if card else None,
        kind=card.kind if card else None,
        architecture=card.architecture if card else None,
        dtype=card.dtype if card else None,
        executor=(card.executor or None) if card else None,
        quantization=config.quantization,
        max_model_len=card.max_model_len if card else config.max_model_len,
        vocab_size=card.vocab_size if card else None,
        dimensions=(card.dimensions or None) if card else None,
        has_chat_template=card.has_chat_template if card else None,
        weight_bytes=card.weight_bytes if card else None,
        token_bytes=(card.token_bytes or None) if card else None,
        kv_bytes=card.kv_bytes if card else None,
        kv_dtype=(card.kv_dtype or None) if card else None,
    )


def model_now(status: ModelStatus, name: str) -> ModelNow:
    """How a model is, under that name."""
    return ModelNow(
        id=name,
        status=status.word,
        state=str(status.state),
        since=round(status.since + time.time() - time.monotonic(), 3),
        stage=status.stage,
        fraction=status.fraction,
        detail=status.detail,
        reason=status.reason,
    )


def _root(entry: Entry) -> str:
    return entry.config.weights or entry.id


def _memory(held: ModelBytes) -> MemoryBytes:
    return MemoryBytes(
        weights=held.weights,
        kv=held.kv,
        workspace=held.workspace,
        estimate=held.estimate,
        expected=held.expected,
        measured=held.measured,
        error=None if held.error is None else round(held.error, 4),
    )


def _last_load(status: ModelStatus) -> LastLoad | None:
    if status.load_seconds is None:
        return None
    stages = {stage: round(seconds, 4) for stage, seconds in status.stages.items()}
    return LastLoad(seconds=round(status.load_seconds, 4), stages=stages)
