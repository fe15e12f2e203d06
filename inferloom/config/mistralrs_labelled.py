"""mistral.rs's labelled entries, in JSON or TOML: `{"label": {"alias": …, "Plain": {"model_id": …}}}`.

The label is for people; the id is `alias`, else the `model_id`, which stays accepted as an alias. What would change
the answers and cannot be done is refused with the reason; so is what is not known.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inferloom.config.decoding import describe, quoted
from inferloom.config.ids import default_name
from inferloom.config.lines import Path
from inferloom.config.mistralrs import (
    CALIBRATION,
    LORA,
    VISION,
    Refused,
    finished,
    one_file,
    refuse,
    refuse_repetition,
    size_limits,
    text_at,
    with_file,
)
from inferloom.config.problems import did_you_mean

# Variants of an entry -> why they are refused; None: served.
VARIANTS: dict[str, str | None] = {
    "Plain": None,
    "GGUF": None,
    "Gguf": None,
    "Embedding": None,
    "Run": None,
    "VisionPlain": VISION,
    "MultimodalPlain": VISION,
    "XLora": LORA,
    "Lora": LORA,
    "XLoraGGUF": LORA,
    "LoraGGUF": LORA,
    "GGML": "the GGML format came before GGUF and is not read; convert the file to GGUF",
    "XLoraGGML": LORA,
    "LoraGGML": LORA,
    "DiffusionPlain": "image generation comes with a later version",
    "Speech": "speech comes with a later version",
}

# Fields of a variant beside those that are served -> why they are refused.
_VARIANT_LATER = {
    "topology": "topologies come with a later version",
    "organization": "experts are quantised like every other matrix; leave it out",
    "write_uqff": "UQFF files are not written",
    "from_uqff": "UQFF files are not read; serve safetensors or GGUF",
    "imatrix": CALIBRATION,
    "calibration_file": CALIBRATION,
    "matformer_config_path": "MatFormer slices come with a later version",
    "matformer_slice_name": "MatFormer slices come with a later version",
    "adapters": LORA,
    "mmproj_filename": VISION,
}
ENTRY_KEYS = ("alias", "chat_template", "jinja_explicit", "num_device_layers", "in_situ_quant")


def translate_labelled(values: Mapping[str, Any]) -> dict[str, Any]:
    """The labelled entries as values of our schema."""
    entries = {label: entry for label, entry in values.items() if label != "default_model_id"}
    models = [_labelled(label, entry) for label, entry in entries.items()]
    refuse_repetition(models, [(label,) for label in entries])
    return {"model": models}


def _labelled(label: str, entry: Any) -> dict[str, Any]:
    at: Path = (label,)
    label = quoted(label)
    if not isinstance(entry, Mapping):
        raise Refused(at, f"{label} must be a table of one model, not {describe(entry)}.")
    variants = [key for key in entry if key in VARIANTS]
    for key in entry:
        if key not in VARIANTS and key not in ENTRY_KEYS:
            known = [*VARIANTS, *ENTRY_KEYS]
            raise Refused(
                (*at, key),
                f"{label}: there is no key {quoted(key)}"
                + (did_you_mean(key, known) or f"; there are {', '.join(known)}."),
            )
    if len(variants) != 1:
        found = " and ".join(variants) or "none"
        raise Refused(
            at,
            f"{label} needs exactly one model specification, such as Plain or GGUF; found {found}.",
        )
    variant = variants[0]
    reason = VARIANTS[variant]
    if reason is not None:
        raise Refused((*at, variant), f"{label}: {variant} cannot be served: {reason}.")
    model = _specification(variant, entry[variant], (*at, variant), label)
    return finished(model, entry, at=at, label=label)


def _specification(variant: str, spec: Any, at: Path, label: str) -> dict[str, Any]:
    """`Plain` and `GGUF` (and what behaves like them) as our keys, the canonical name under `name`."""
    if not isinstance(spec, Mapping):
        raise Refused(at, f"{label}: {variant} must be a table, not {describe(spec)}.")
    gguf = variant.upper() == "GGUF"
    served = (
        ("tok_model_id", "quantized_model_id", "quantized_filename", "dtype", "max_seq_len", "max_batch_size")
        if gguf
        else ("model_id", "tokenizer_json", "arch", "dtype", "hf_cache_path", "max_seq_len", "max_batch_size")
    )
    for key, value in spec.items():
        if key in _VARIANT_LATER:
            refuse(spec, key, _VARIANT_LATER[key], at, label)
        elif key not in served:
            raise Refused(
                (*at, key),
                f"{label}: {variant} has no key {quoted(key)}"
                + (did_you_mean(key, served) or f"; it has {', '.join(served)}."),
            )
        elif key in ("arch", "hf_cache_path", "tokenizer_json") and value is not None:
            why = {
                "arch": "the architecture is read from the checkpoint; leave it out",
                "hf_cache_path": "the hub's cache is chosen by HF_HOME; leave it out",
                "tokenizer_json": "the tokenizer comes from the checkpoint, or from the one tok_model_id names",
            }
            refuse(spec, key, why[key], at, label)
    return _gguf(spec, at, label) if gguf else _plain(spec, at, label)


def _plain(spec: Mapping[str, Any], at: Path, label: str) -> dict[str, Any]:
    model_id = text_at(spec, "model_id", at, label)
    return {"name": default_name(model_id), "source": model_id, **size_limits(spec)}


def _gguf(spec: Mapping[str, Any], at: Path, label: str) -> dict[str, Any]:
    repo = text_at(spec, "quantized_model_id", at, label)
    file = one_file(spec.get("quantized_filename"), (*at, "quantized_filename"), label)
    model: dict[str, Any] = {"name": default_name(repo), "source": with_file(repo, file), **size_limits(spec)}
    if spec.get("tok_model_id") is not None:
        model["tok_model_id"] = spec["tok_model_id"]
    return model
