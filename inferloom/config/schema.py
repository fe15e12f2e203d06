"""The configuration as data: every section and key with its default. Loading and checking are beside it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, Literal

import msgspec

BatchPolicy = Literal["adaptive", "eager", "greedy"]


class ServerConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    host: str = "127.0.0.1"
    port: int = 8080
    verbose: bool = False
    registry: str = "~/.inferloom/registry"
    python_snapshot: bool = True
    max_concurrent_processes: int | None = None
    # ours
    api_keys: list[str] = []
    default_model: str | None = None
    max_concurrent_requests: int | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    access_log: bool = False
    cors_origins: list[str] = []
    insecure: bool = False
    drain_timeout_secs: float = 30.0
    queue_timeout_secs: float = 60.0
    load_timeout_secs: float = 600.0
    first_token_timeout_secs: float = 120.0


class AuthConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    enabled: bool = True


class TelemetryConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    enabled: bool = False
    endpoint: str = "http://localhost:4317"
    service_name: str = "inferloom"


class RuntimeConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    worker_threads: int = msgspec.field(default_factory=lambda: os.cpu_count() or 1)
    wasm_max_instances: int = 1000
    wasm_max_memory_mb: int = 4096
    wasm_warm_memory_mb: int = 0
    wasm_warm_slots: int = 100
    allow_fs: bool = False
    fs_scratch_dir: str = msgspec.field(default_factory=lambda: str(Path(tempfile.gettempdir()) / "inferloom"))
    allow_network: bool = True
    network_allowed_hosts: list[str] = msgspec.field(default_factory=lambda: ["*"])
    max_upload_mb: int = 256


class SchedulerConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    batch_policy: BatchPolicy = "adaptive"
    request_timeout_secs: float = 120.0
    default_token_limit: int | None = None
    default_endowment_pages: int = 64
    admission_oversubscription_factor: float = 4.0
    restore_pause_at_utilization: float = 0.85


class DriverConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`type` is normalised on loading: `portable` and `cuda_native` become `native`; a single device a list."""

    type: str
    device: list[str] = msgspec.field(default_factory=lambda: ["cpu"])
    tensor_parallel_size: int = 1
    activation_dtype: str = "bfloat16"
    random_seed: int = 42
    options: dict[str, Any] = {}  # checked by driver type: see `drivers.py`


class ModelConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    name: str
    driver: DriverConfig
    hf_repo: str | None = None
    source: str | None = None
    scheduler: SchedulerConfig = msgspec.field(default_factory=SchedulerConfig)
    # ours
    aliases: list[str] = []
    system_prompt: str | None = None
    lazy: bool = False
    max_model_len: int | None = None
    chat_template: str | None = None  # a template, or the path of one
    jinja_explicit: str | None = None  # the path of a Jinja file, before chat_template
    tok_model_id: str | None = None  # where the tokenizer comes from, if not from the source
    num_device_layers: list[str] | None = None
    dtype: str = "auto"
    keep_alive: float | str | None = None
    pin: bool = False
    trust_remote_code: bool = False

    @property
    def weights(self) -> str | None:
        """The source, by whichever of its two keys it was given."""
        return self.source if self.source is not None else self.hf_repo


class Config(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    server: ServerConfig = msgspec.field(default_factory=ServerConfig)
    auth: AuthConfig = msgspec.field(default_factory=AuthConfig)
    telemetry: TelemetryConfig = msgspec.field(default_factory=TelemetryConfig)
    runtime: RuntimeConfig = msgspec.field(default_factory=RuntimeConfig)
    model: list[ModelConfig] = []
