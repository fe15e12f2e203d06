"""Models as a table on the terminal: what a server says of them, or what a configuration declares."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from inferloom.cli.printing import rows_of
from inferloom.config.schema import Config, ModelConfig


class ModelRow(msgspec.Struct, frozen=True, kw_only=True):
    """A model as the listing shows it. `bytes` are those of its weights, `memory` what its process took after its load,
    `reserved` what it may grow to as its KV pages fill; what is not known is empty or 0."""

    id: str
    state: str = ""
    kind: str = ""
    parameters: int = 0
    bytes: int = 0
    source: str = ""
    driver: str = ""
    device: str = ""
    system_prompt: str | None = None
    default: bool = False
    stage: str = ""
    fraction: float | None = None
    reason: str = ""
    memory: int = 0
    reserved: int = 0
    expires_at: float | None = None  # seconds since the epoch
    pinned: bool = False
    waiting: int = 0  # requests that wait for it
    shares: list[str] = []  # other models that its worker answers for


class Column(msgspec.Struct, frozen=True):
    title: str
    text: Callable[[ModelRow], str]
    right: bool = False


def human_count(number: int) -> str:
    """135_000_000 → `135M`: parameters, or bytes with a `B` put behind."""
    for limit, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= limit:
            value = number / limit
            return f"{value:.1f}{unit}" if value < 10 else f"{value:.0f}{unit}"
    return str(number) if number else ""


def human_bytes(number: int) -> str:
    """`135MB`; nothing for 0."""
    return f"{human_count(number)}B" if number else ""


def _state(row: ModelRow) -> str:
    how_far = f"{row.fraction:.0%}" if row.fraction is not None else ""
    return " ".join(part for part in (row.state, row.stage, how_far) if part)


def _expiry(row: ModelRow) -> str:
    return "" if row.expires_at is None else remaining(row.expires_at - time.time())


def _why(row: ModelRow) -> str:
    return "; ".join(part for part in ("pinned" if row.pinned else "", in_a_line(row.reason)) if part)


def in_a_line(reason: str) -> str:
    """A reason as a table has it, without the lines that follow: who holds which memory."""
    return reason.partition("\n")[0].removesuffix("; held by (MiB):")


def remaining(seconds: float) -> str:
    """`in 4 min`: how long until something that is going to happen."""
    if seconds < 0:
        return "now"
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"in {seconds / length:.0f} {unit}"
    return f"in {seconds:.0f} s"


_ID = Column("ID", lambda row: f"{row.id} *" if row.default else row.id)
_STATE = Column("STATE", _state)
_KIND = Column("KIND", lambda row: {"generate": "chat", "embed": "embeddings"}.get(row.kind, row.kind))
_PARAMETERS = Column("PARAMETERS", lambda row: human_count(row.parameters), right=True)
_SIZE = Column("SIZE", lambda row: human_bytes(row.bytes), right=True)
_SOURCE = Column("SOURCE", lambda row: row.source)
_PROMPT = Column("SYSTEM PROMPT", lambda row: row.system_prompt or "")
_DRIVER = Column("DRIVER", lambda row: row.driver)
_DEVICE = Column("DEVICE", lambda row: row.device)
_MEMORY = Column("MEMORY", lambda row: human_bytes(row.memory), right=True)
_RESERVED = Column("RESERVED", lambda row: human_bytes(row.reserved), right=True)
_EXPIRY = Column("EXPIRES", _expiry)
_WHY = Column("WHY", _why)

LIST_COLUMNS = (_ID, _STATE, _KIND, _PARAMETERS, _SIZE, _MEMORY, _RESERVED, _EXPIRY, _SOURCE, _PROMPT, _WHY)
PLAN_COLUMNS = (_ID, _STATE, _KIND, _DRIVER, _DEVICE, _SIZE, _SOURCE, _PROMPT)


def table(rows: Sequence[ModelRow], columns: Sequence[Column]) -> str:
    """Rows under their titles; columns without any text are left out."""
    return rows_of(
        [column.title for column in columns],
        [[column.text(row) for column in columns] for row in rows],
        right=[column.title for column in columns if column.right],
    )


def declared(model: ModelConfig, config: Config) -> ModelRow:
    """A configured model without a server: whether its weights are here, and how large they are."""
    from inferloom.formats.prepare import locate
    from inferloom.sources.table import SHORT_NAMES

    source = model.weights or ""
    short = SHORT_NAMES.get(source)
    checkpoint = (
        locate(source, tokenizer=model.tok_model_id, quantization=model.quantization) if source else None
    )
    size = sum(Path(path).stat().st_size for path in checkpoint.weights) if checkpoint else 0
    if not source:
        state = "scripted"
    elif checkpoint is not None:
        state = "on disk"
    else:
        state = "to be fetched"
        size = short.size_bytes if short is not None else 0
    if short is not None:
        kind: str = short.kind
    else:
        kind = str(model.driver.options.get("kind", "generate")) if model.driver.type == "dummy" else ""
    return ModelRow(
        id=model.name,
        state=state,
        kind=kind,
        bytes=size,
        source=source,
        driver=model.driver.type,
        device=",".join(model.driver.device),
        system_prompt=model.system_prompt or (short.system_prompt if short is not None else None),
        default=model is config.default_model,
    )
