"""The configuration that the flags of `serve` describe: `-m SOURCE[,key=value…]` and the flags around it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import inspect

from inferloom.config.decoding import fields_of, plain, quoted
from inferloom.config.drivers import OPTIONS, canonical
from inferloom.config.ids import default_name
from inferloom.config.loading import from_values
from inferloom.config.problems import did_you_mean
from inferloom.config.schema import Config, DriverConfig, ModelConfig, SchedulerConfig
from inferloom.config.values import coerce
from inferloom.errors import ConfigError

ORIGIN = "command line"

_KEY = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_.]*)\s*=(.*)", re.DOTALL)

# Flags of the documents this project grew from whose feature comes later, with the reason.
_LATER = {
    "adapter": "LoRA adapters come with a later version",
    "adapter_type": "LoRA adapters come with a later version",
    "model_class": "model classes of your own come with a later version",
    "model_type": "safetensors and GGUF are recognised without it; ONNX, TorchScript and TensorRT come with a later version",
    "no_auth": "the WebSocket it is about comes with a later version; HTTP clients are let in by `[server] api_keys`",
    "no_snapshot": "inferlets come with a later version",
}


def from_flags(
    models: Sequence[str],
    *,
    base: Config | None = None,
    host: str | None = None,
    port: int | None = None,
    default_model_id: str | None = None,
    lazy_loading: bool = False,
    max_model_len: int | None = None,
    max_batch_size: int | None = None,
    max_concurrent_requests: int | None = None,
    gpu_memory_utilization: float | None = None,
    dtype: str | None = None,
    log_level: str | None = None,
    insecure: bool = False,
    quantization: str | None = None,
    adapter: str | None = None,
    adapter_type: str | None = None,
    model_class: str | None = None,
    model_type: str | None = None,
    tensor_parallel_size: int | None = None,
    pipeline_parallel_size: int | None = None,
    no_auth: bool = False,
    no_snapshot: bool = False,
) -> Config:
    """The configuration of `serve`'s flags, checked; a flag that is None (or False) was not given.

    `models` are added to those of `base`. Flags go before `base`, and what stands behind a comma of a `-m` goes
    before the flags. Raises ConfigError.
    """
    _refuse_later(
        adapter=adapter,
        adapter_type=adapter_type,
        model_class=model_class,
        model_type=model_type,
        no_auth=no_auth,
        no_snapshot=no_snapshot,
    )
    for flag, size in (("tensor", tensor_parallel_size), ("pipeline", pipeline_parallel_size)):
        if size not in (None, 1):
            raise ConfigError(
                f"--{flag}-parallel-size {size}: {flag} parallelism comes with a later version."
            )
    server = _given(
        host=host,
        port=port,
        default_model=default_model_id,
        max_concurrent_requests=max_concurrent_requests,
        log_level=log_level,
        verbose=False if log_level is not None else None,  # the file's `verbose` would go before the flag
        insecure=insecure or None,
    )
    shared = _given(
        lazy=lazy_loading or None, max_model_len=max_model_len, dtype=dtype, quantization=quantization
    )
    options = _given(max_batch_size=max_batch_size, gpu_mem_utilization=gpu_memory_utilization)
    values: dict[str, Any] = _set_keys(msgspec.to_builtins(base)) if base is not None else {}
    values["server"] = {**values.get("server", {}), **server}
    entries: list[dict[str, Any]] = [_overlaid(entry, shared, options) for entry in values.get("model", [])]
    for written in models:
        source, own = split_model(written)
        entry = _overlaid({"driver": {"type": "native"}}, shared, options)
        if source:
            entry.update(source=source, name=default_name(source))
        _apply(entry, own, written)
        if "name" not in entry:
            raise ConfigError(f"-m {quoted(written)}: a model without a source needs a name: write `name=x`.")
        entries.append(entry)
    return from_values({**values, "model": entries}, origin=ORIGIN)


def split_model(written: str) -> tuple[str, list[tuple[str, str]]]:
    """`SOURCE,key=value,…` taken apart. A part without `=` continues the value (or source) before it."""
    head, *parts = written.split(",")
    pairs: list[tuple[str, str]] = []
    for part in parts:
        match = _KEY.fullmatch(part)
        if match:
            pairs.append((match[1], match[2]))
        elif pairs:
            pairs[-1] = (pairs[-1][0], f"{pairs[-1][1]},{part}")
        else:
            head = f"{head},{part}"
    return head.strip(), pairs


def _overlaid(
    entry: Mapping[str, Any], shared: Mapping[str, Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    driver = entry["driver"]
    return {
        **entry,
        **shared,
        "driver": {**driver, "options": {**driver.get("options", {}), **options}},
    }


def _apply(entry: dict[str, Any], pairs: Sequence[tuple[str, str]], written: str) -> None:
    """Put what stands behind the commas where it belongs; the driver first, because its options depend on it."""
    for key, text in pairs:
        if key in ("driver", "driver.type", "type"):
            entry["driver"]["type"] = text.strip()
    homes = _homes(entry)
    for key, text in pairs:
        if key in ("driver", "driver.type", "type"):
            continue
        if key not in homes:
            known = sorted(name for name in homes if "." not in name)
            raise ConfigError(
                f"-m {quoted(written)}: there is no key {quoted(key)}"
                + (did_you_mean(key, homes) or f"; there are {', '.join(known)}.")
            )
        table, name, kind = homes[key]
        table[name] = coerce(text, kind)


def _homes(entry: dict[str, Any]) -> dict[str, tuple[dict[str, Any], str, inspect.Type]]:
    """Key, as written short or dotted -> the table it belongs to, its name there and its type."""
    driver = entry["driver"]
    scheduler = entry.setdefault("scheduler", {})
    options = OPTIONS.get(canonical(driver["type"]))
    tables: list[tuple[str, type[msgspec.Struct], dict[str, Any]]] = []
    if options is not None:
        tables.append(("driver.options.", options, driver.setdefault("options", {})))
    tables += [
        ("scheduler.", SchedulerConfig, scheduler),
        ("driver.", DriverConfig, driver),
        ("", ModelConfig, entry),
    ]
    homes: dict[str, tuple[dict[str, Any], str, inspect.Type]] = {}
    for prefix, struct, table in tables:
        for name, field in fields_of(struct).items():
            if not isinstance(plain(field.type), inspect.StructType | inspect.DictType):
                homes[name] = homes[prefix + name] = (table, name, field.type)
    return homes


def _set_keys(values: Any) -> Any:
    """Plain values without the keys that are None: in a file, what is not set is left out."""
    if isinstance(values, dict):
        return {key: _set_keys(value) for key, value in values.items() if value is not None}
    return [_set_keys(value) for value in values] if isinstance(values, list) else values


def _given(**flags: Any) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if value is not None}


def _refuse_later(**flags: str | bool | None) -> None:
    for name, value in flags.items():
        if value is not None and value is not False:
            given = "" if value is True else f" {value}"
            raise ConfigError(f"--{name.replace('_', '-')}{given}: {_LATER[name]}.")
