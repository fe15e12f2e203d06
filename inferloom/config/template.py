"""What `config init` writes: a file that serves here, with every key of the schema and what it means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import inspect

from inferloom.config.decoding import fields_of, plain
from inferloom.config.drivers import NativeOptions
from inferloom.config.later import LATER
from inferloom.config.schema import (
    AuthConfig,
    DriverConfig,
    ModelConfig,
    RuntimeConfig,
    SchedulerConfig,
    ServerConfig,
    TelemetryConfig,
)
from inferloom.config.writing import toml_value

# The two starter models, under their own names: a chat model, which is the default, and embeddings.
CHAT = {
    "name": "smollm2",
    "source": "smollm2",
    "system_prompt": "You are a concise assistant. Answer in one short sentence.",
}
EMBEDDINGS = {"name": "minilm", "source": "minilm", "dtype": "float32"}

# What an unset key could look like; it stands behind a `#`.
_EXAMPLES: dict[str, Any] = {
    "max_concurrent_processes": 64,
    "default_model": "smollm2",
    "max_concurrent_requests": 256,
    "worker_threads": 8,
    "fs_scratch_dir": "/tmp/inferloom",
    "hf_repo": "Qwen/Qwen3-0.6B",
    "max_model_len": 2048,
    "chat_template": "path/to/template.jinja",
    "jinja_explicit": "path/to/template.jinja",
    "tok_model_id": "Qwen/Qwen3-0.6B",
    "draft": "smaller-model",
    "num_device_layers": ["0:10"],
    "keep_alive": "5m",
    "max_loaded": 3,
    "group": "large",
    "default_token_limit": 100000,
}

_HEAD = """\
# Inferloom serves what stands here. `inferloom serve` reads this file; `inferloom config check` tests it.
# Unset keys stand behind a "#". What a key means in full: docs/configuration.md.
"""


def template() -> str:
    """The text of a new configuration file: the starter models on the CPU, ready to be served."""
    sections = [
        _HEAD,
        _section("[server]", ServerConfig, {}, "server"),
        _section("[auth]", AuthConfig, {"enabled": False}, ""),
        _section("[telemetry]", TelemetryConfig, {}, "telemetry"),
        _section("[runtime]", RuntimeConfig, {}, "runtime"),
        _model(),
        _second_model(),
    ]
    return "\n".join(sections)


def _model() -> str:
    comment = "# One [[model]] for each model that is served. The first is the default.\n"
    return "\n".join(
        [
            comment + _section("[[model]]", ModelConfig, CHAT, "model"),
            _section("[model.scheduler]", SchedulerConfig, {}, "model.scheduler"),
            _section("[model.driver]", DriverConfig, {"type": "native"}, "model.driver"),
            _section("[model.driver.options]", NativeOptions, {}, ""),
        ]
    )


def _second_model() -> str:
    keys = "".join(f"{key} = {toml_value(value)}\n" for key, value in EMBEDDINGS.items())
    return f'[[model]]\n{keys}\n[model.driver]\ntype = "native"\nactivation_dtype = "float32"\n'


def _section(header: str, struct: type[msgspec.Struct], chosen: Mapping[str, Any], later: str) -> str:
    lines = [header]
    for name, field in fields_of(struct).items():
        if isinstance(plain(field.type), inspect.StructType | inspect.DictType):
            continue
        meaning = description(field)
        if name in LATER.get(later, {}):
            meaning += " (Comes with a later version.)"
        lines.append(f"# {meaning}")
        value = chosen[name] if name in chosen else default(field)
        unset = name in _EXAMPLES and name not in chosen
        lines.append(
            f"# {name} = {toml_value(_EXAMPLES[name])}" if unset else f"{name} = {toml_value(value)}"
        )
    return "\n".join(lines) + "\n"


def description(field: inspect.Field) -> str:
    """The one line that says what a key means."""
    assert isinstance(field.type, inspect.Metadata), field.name
    return str((field.type.extra_json_schema or {})["description"])


def default(field: inspect.Field) -> Any:
    """What a key is when nobody sets it."""
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return field.default
