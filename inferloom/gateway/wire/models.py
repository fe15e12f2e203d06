"""Models, their lifecycle, and their tokenizers, as they travel."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from inferloom.gateway.wire.errors import ErrorBody
from inferloom.gateway.wire.keeping import KeepAlive
from inferloom.gateway.wire.patience import TimeoutSecs


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


class MemoryBytes(msgspec.Struct, kw_only=True):
    """What the ledger holds for a model in memory (`estimate` is the sum), the part of it that is `expected`
    to be there before the first request, and the PSS of its process after the load."""

    weights: int
    kv: int
    workspace: int
    estimate: int
    expected: int
    measured: int | None
    error: float | None  # measured / expected - 1


class LastLoad(msgspec.Struct, kw_only=True):
    """Seconds of the last load, and of its stages."""

    seconds: float
    stages: dict[str, float]


class ModelNow(msgspec.Struct, kw_only=True):
    """How a model is: `since` when, in Unix time, and how far its load is."""

    id: str
    status: str
    state: str
    since: float
    stage: str | None = None
    fraction: float | None = None
    detail: str = ""
    reason: str | None = None


class ModelDetails(ModelNow, kw_only=True):
    """`GET /v1/models/{id}`. What only a loaded model knows is null until it was loaded once. Times are Unix times."""

    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["local"] = "local"
    root: str
    name: str
    aliases: list[str]
    default: bool
    retry_after: float | None = None
    bytes: MemoryBytes | None = None  # of a model in memory
    leases: int = 0  # requests that hold it
    waiting: int = 0  # requests that wait for it
    yielding: bool = False  # it gives no leases for now: others need its room
    expected_secs: float | None = (
        None  # until those who wait are served, where that depends on others' memory
    )
    expires_at: float | None = None  # when it will be unloaded if nothing is asked of it
    keep_alive: float = -1  # seconds; -1: for ever
    pinned: bool = False
    priority: int = 0
    group: str | None = None
    shares: list[str] = []  # other models that this one's worker answers for
    replacing: bool = False  # its successor is being loaded
    last_load: LastLoad | None = None
    loads: int = 0
    evictions: int = 0
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
    token_bytes: int | None = None  # of them, that one greedy token reads
    kv_bytes: int | None = None
    kv_dtype: str | None = None  # of keys and values in their pages


class LifecycleRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    model_id: str


class LoadRequest(LifecycleRequest, forbid_unknown_fields=True, kw_only=True):
    """`timeout_secs`: how long to wait for the model, in place of `[server] load_timeout_secs`."""

    keep_alive: KeepAlive | None = None
    timeout_secs: Annotated[float, Meta(gt=0)] | None = None


class UnloadRequest(LifecycleRequest, forbid_unknown_fields=True, kw_only=True):
    """`timeout_secs`: what the requests in progress have to end, in place of `[server] drain_timeout_secs`; with `force`
    they have none."""

    force: bool | None = None
    timeout_secs: Annotated[float, Meta(ge=0)] | None = None


class PinRequest(LifecycleRequest, forbid_unknown_fields=True, kw_only=True):
    pin: bool = True


class DefaultRequest(LifecycleRequest, forbid_unknown_fields=True, kw_only=True):
    pass


class DefaultAnswer(msgspec.Struct, kw_only=True):
    """`default`: the id of what requests without a model now get."""

    model_id: str
    default: str
    status: str


class EvictedModel(msgspec.Struct, kw_only=True):
    """`bytes` are told once where several names share one worker."""

    model_id: str
    bytes: int


class PlannedBytes(msgspec.Struct, kw_only=True):
    weights: int
    kv: int
    workspace: int


class PlanAnswer(msgspec.Struct, kw_only=True):
    """`POST /v1/models/plan`. `fits` and `bytes` are null while the model's files are not on the server's machine."""

    model_id: str
    loaded: bool
    fits: bool | None
    device: str
    evicts: list[EvictedModel]
    bytes: PlannedBytes | None
    free_bytes: int
    waits: bool
    expected_secs: float | None
    reason: str | None


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
    pinned: bool | UnsetType = UNSET
    freed_bytes: int | UnsetType = UNSET  # by this unload, as measured before; 0: nothing was in memory
    error: ErrorBody | UnsetType = UNSET


class TokenizeRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    text: str
    model: str | None = None
    keep_alive: KeepAlive | None = None
    timeout_secs: TimeoutSecs | None = None
    add_special_tokens: bool | None = None


class TokenizeAnswer(msgspec.Struct):
    tokens: list[int]


class DetokenizeRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    tokens: list[Annotated[int, Meta(ge=0, le=2**31 - 1)]]
    model: str | None = None
    keep_alive: KeepAlive | None = None
    timeout_secs: TimeoutSecs | None = None
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
