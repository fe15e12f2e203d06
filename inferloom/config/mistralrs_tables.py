"""mistral.rs's newer TOML: `[[models]]` with `kind`, `model_id` and tables beside them, `[global]` and `[server]`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inferloom.config.decoding import describe, quoted
from inferloom.config.ids import default_name
from inferloom.config.lines import Path
from inferloom.config.mistralrs import (
    ARCH,
    CALIBRATION,
    GGML,
    HUB_CACHE,
    LORA,
    TOPOLOGY,
    VISION,
    Refused,
    finished,
    one_file,
    quantization,
    refuse,
    refuse_repetition,
    size_limits,
    table_at,
    text_at,
    with_file,
)
from inferloom.config.problems import did_you_mean

_KINDS = {
    "multimodal": VISION,
    "diffusion": "image generation comes with a later version",
    "speech": "speech comes with a later version",
}


_MODEL_KEYS = ("kind", "model_id", "alias", "tokenizer", "arch", "dtype", "chat_template", "jinja_explicit")
_TABLES = {
    "format": ("format", "quantized_file", "mmproj", "tok_model_id", "gqa"),
    "quantization": ("quant", "isq", "from_uqff", "isq_organization", "imatrix", "calibration_file"),
    "device": ("cpu", "device_layers", "topology", "hf_cache", "max_seq_len", "max_batch_size"),
    "adapter": (),
    "multimodal": (),
}


def translate_tables(values: Mapping[str, Any]) -> dict[str, Any]:
    for section, reason in (
        ("runtime", "its keys have no counterpart here"),
        ("paged_attn", "KV pages are always used; their memory is driver.options.gpu_mem_utilization"),
        ("sandbox", "running tools comes with a later version"),
    ):
        refuse(values, section, reason, (), f"[{section}]")
    known = ("command", "default_model_id", "global", "server", "models")
    for section in values:
        if section not in known and values[section] not in ({}, None):
            raise Refused(
                (section,),
                f"{quoted(section)} is not a section of this file" + (did_you_mean(section, known) or "."),
            )
    if values.get("command", "serve") != "serve":
        raise Refused(
            ("command",), 'command must be "serve"; for a chat in the terminal use `inferloom chat`.'
        )
    server = _server(values.get("server", {}))
    seed = table_at(values, "global", ("seed", "log", "token_source"), ())
    refuse(seed, "log", "requests are never logged; see server.access_log", ("global",), "[global]")
    refuse(seed, "token_source", "the hub's token is taken from HF_TOKEN", ("global",), "[global]")
    entries = values.get("models")
    if not isinstance(entries, list) or not entries:
        raise Refused(("models",), "there is no [[models]]; name at least one model.")
    models = [_entry(entry, ("models", number)) for number, entry in enumerate(entries)]
    if "seed" in seed:
        for model in models:
            model["driver"]["random_seed"] = seed["seed"]
    refuse_repetition(models, [("models", number) for number in range(len(models))])
    return {"server": server, "model": models}


def _server(table: Any) -> dict[str, Any]:
    if not isinstance(table, Mapping):
        raise Refused(("server",), "[server] must be a table.")
    server = {key: table[key] for key in ("host", "port") if key in table}
    if "disable_access_log" in table:
        server["access_log"] = not table["disable_access_log"]
    for key in table:
        if key not in (*server, "disable_access_log", "no_ui") or (key == "no_ui" and table[key] is not True):
            raise Refused(("server", key), f"[server].{key} has no counterpart here; leave it out.")
    return server


def _quantization(table: Mapping[str, Any], at: Path, label: str) -> dict[str, str]:
    for key in ("imatrix", "calibration_file"):
        refuse(table, key, CALIBRATION, at, label)
    refuse(table, "from_uqff", "UQFF files are not read; serve safetensors or GGUF", at, label)
    if table.get("isq_organization") not in (None, "default"):
        refuse(
            table,
            "isq_organization",
            "experts are quantised like every other matrix; leave it out",
            at,
            label,
        )
    if table.get("isq") is not None and table.get("quant") is not None:
        raise Refused((*at, "quant"), f"{label}: quant and isq say the same thing; give one of them.")
    key = "isq" if table.get("isq") is not None else "quant"
    return quantization(table.get(key), (*at, key), label)


def _entry(entry: Any, at: Path) -> dict[str, Any]:
    label = f"models.{at[-1]}"
    if not isinstance(entry, Mapping):
        raise Refused(at, f"{label} must be a table, not {describe(entry)}.")
    for key in entry:
        if key not in _MODEL_KEYS and key not in _TABLES:
            known = (*_MODEL_KEYS, *_TABLES)
            raise Refused(
                (*at, key),
                f"{label}: there is no key {quoted(key)}"
                + (did_you_mean(key, known) or f"; there are {', '.join(known)}."),
            )
    kind = entry.get("kind", "auto")
    if kind in _KINDS:
        raise Refused((*at, "kind"), f"{label}: kind = {quoted(str(kind))} cannot be served: {_KINDS[kind]}.")
    if kind not in ("auto", "text", "embedding"):
        raise Refused((*at, "kind"), f"{label}: kind must be auto, text or embedding, not {describe(kind)}.")
    tables = {name: table_at(entry, name, keys, at) for name, keys in _TABLES.items()}
    refuse(entry, "adapter", LORA, at, label)
    refuse(entry, "multimodal", VISION, at, label)
    asked = _quantization(tables["quantization"], (*at, "quantization"), label)
    device, form = tables["device"], tables["format"]
    refuse(device, "topology", TOPOLOGY, (*at, "device"), label)
    refuse(device, "hf_cache", HUB_CACHE, (*at, "device"), label)
    refuse(form, "mmproj", VISION, (*at, "format"), label)
    refuse(form, "gqa", "it belongs to GGML files, which are not read", (*at, "format"), label)
    refuse(entry, "arch", ARCH, at, label)
    if form.get("format", "plain") == "ggml":
        raise Refused((*at, "format", "format"), f"{label}: {GGML}.")
    model_id = text_at(entry, "model_id", at, label)
    file = one_file(form.get("quantized_file"), (*at, "format", "quantized_file"), label)
    limits = size_limits({**device, "dtype": entry.get("dtype")})
    tokenizer = form.get("tok_model_id", entry.get("tokenizer"))
    model = {
        "name": default_name(model_id),
        "source": with_file(model_id, file),
        **limits,
        **asked,
        **({"tok_model_id": tokenizer} if tokenizer else {}),
    }
    if device.get("cpu") is False:
        model["driver"]["device"] = ["cuda:0"]
    layers = {"num_device_layers": device.get("device_layers")}
    return finished(model, {**entry, **layers}, at=at, label=label)
