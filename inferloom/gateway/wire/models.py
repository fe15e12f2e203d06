"""Models, their lifecycle, and their tokenizers, as they travel."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from inferloom.gateway.wire.errors import ErrorBody

StatusWord = Literal["loaded", "unloaded", "reloading", "not_found", "no_loader_config", "internal_error"]


class ModelObject(msgspec.Struct, kw_only=True):
    """An entry of the listing. The entry `default` has no status; its `root` is the model it stands for."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["local"] = "local"
    root: str
    status: str | UnsetType = UNSET
    aliases: list[str] | UnsetType = UNSET


class ModelList(msgspec.Struct, kw_only=True):
    object: Literal["list"] = "list"
    data: list[ModelObject]


class ModelDetails(msgspec.Struct, kw_only=True):
    """`GET /v1/models/{id}`. What only a loaded model knows is null until it was loaded once."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["local"] = "local"
    root: str
    name: str
    aliases: list[str]
    default: bool
    status: str
    state: str
    stage: str | None = None
    fraction: float | None = None
    reason: str | None = None
    retry_after: float | None = None
    driver: str
    system_prompt: str | None = None
    parameters: int | None = None
    format: str | None = None
    kind: str | None = None
    architecture: str | None = None
    dtype: str | None = None
    executor: str | None = None  # what computes it, with the reason where it is not the native one
    quantization: str = "none"
    max_model_len: int | None = None
    vocab_size: int | None = None
    dimensions: int | None = None
    has_chat_template: bool | None = None
    weight_bytes: int | None = None
    kv_bytes: int | None = None
    kv_dtype: str | None = None  # of keys and values in their pages


class LifecycleRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    model_id: str
    force: bool | None = None


class RequantiseRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """`ggml_type` and `isq_type` are mistral.rs's words for `quantization`. Without a model: the default one."""

    model_id: str | None = None
    quantization: str | None = None
    ggml_type: str | None = None
    isq_type: str | None = None


class LifecycleAnswer(msgspec.Struct, kw_only=True):
    """`status` is one of the six words; the richer state stands beside it."""

    model_id: str
    status: str
    state: str | UnsetType = UNSET
    stage: str | UnsetType | None = UNSET
    fraction: float | UnsetType | None = UNSET
    quantization: str | UnsetType = UNSET
    error: ErrorBody | UnsetType = UNSET


class TokenizeRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    text: str
    model: str | None = None
    add_special_tokens: bool | None = None


class TokenizeAnswer(msgspec.Struct):
    tokens: list[int]


class DetokenizeRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    tokens: list[Annotated[int, Meta(ge=0, le=2**31 - 1)]]
    model: str | None = None
    skip_special_tokens: bool | None = None


class DetokenizeAnswer(msgspec.Struct):
    text: str


class Health(msgspec.Struct, kw_only=True):
    status: Literal["ok"] = "ok"
    version: str


ReadyWord = Literal["starting", "ready", "draining"]


class Readiness(msgspec.Struct, kw_only=True):
    """200 with `ready`; 503 while the first models load (`starting`) and while the server ends (`draining`)."""

    status: ReadyWord
    models: dict[str, str]
