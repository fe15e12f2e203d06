"""What the two eras of mistral.rs's multi-model files have in common: ids, source of a file, refusals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

from inferloom.config.decoding import describe, quoted
from inferloom.config.later import LATER
from inferloom.config.lines import Path
from inferloom.config.problems import did_you_mean
from inferloom.config.quantization import scheme
from inferloom.errors import ConfigError

CALIBRATION = "quantisation here needs no importance matrix and no calibration text; leave it out"
LORA = "LoRA adapters come with a later version"
VISION = "images as input come with a later version"
GGML = "the GGML format came before GGUF and is not read; convert the file to GGUF"
ARCH = "the architecture is read from the checkpoint; leave it out"
HUB_CACHE = "the hub's cache is chosen by HF_HOME; leave it out"
TOPOLOGY = "topologies come with a later version"


class Refused(Exception):
    """A place in the file and what is wrong there."""

    def __init__(self, path: Path, sentence: str) -> None:
        super().__init__(sentence)
        self.path = path
        self.sentence = sentence


def with_file(repo: str, file: str | None) -> str:
    """The source of a file inside a repository, or inside a folder on disk."""
    if file is None:
        return repo
    folder = FilePath(repo).expanduser()
    return str(folder / file) if folder.is_dir() else f"{repo}#{file}"


def one_file(value: Any, at: Path, label: str) -> str | None:
    files = value.replace(";", " ").split() if isinstance(value, str) else value
    if isinstance(files, Sequence) and len(files) > 1:
        raise Refused(at, f"{label}: GGUF files in several pieces come with a later version; name one file.")
    if files is None or files == []:
        return None
    return str(files[0])


def size_limits(spec: Mapping[str, Any]) -> dict[str, Any]:
    """dtype and the two size limits, which mistral.rs keeps in the specification."""
    limits: dict[str, Any] = {"driver": {"type": "native", "options": {}}}
    if spec.get("dtype") is not None:
        limits["dtype"] = spec["dtype"]
    if spec.get("max_seq_len") is not None:
        limits["max_model_len"] = spec["max_seq_len"]
    if spec.get("max_batch_size") is not None:
        limits["driver"]["options"]["max_batch_size"] = spec["max_batch_size"]
    return limits


def quantization(value: Any, at: Path, label: str) -> dict[str, str]:
    """Our key for mistral.rs's name of an in-situ quantisation (`Q4K`, `"8"`, 4); empty where there is none."""
    if value is None:
        return {}
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise Refused(at, f'{label}: {at[-1]} must be a name such as "Q4K" or "8", not {describe(value)}.')
    try:
        return {"quantization": scheme(str(value), where=f"{label}: {at[-1]}")}
    except ConfigError as error:
        raise Refused(at, error.message) from None


def finished(model: dict[str, Any], entry: Mapping[str, Any], *, at: Path, label: str) -> dict[str, Any]:
    """The keys that stand beside the specification; with an alias, the canonical name becomes an alias of ours."""
    refuse(entry, "num_device_layers", LATER["model"]["num_device_layers"][0], at, label)
    for key in ("chat_template", "jinja_explicit"):
        if entry.get(key) is not None:
            model[key] = entry[key]
    model.update(quantization(entry.get("in_situ_quant"), (*at, "in_situ_quant"), label))
    alias = entry.get("alias")
    if alias is not None and alias != model["name"]:
        model["aliases"] = [model["name"]]
        model["name"] = alias
    return model


def refuse_repetition(models: Sequence[Mapping[str, Any]], places: Sequence[Path]) -> None:
    """Two entries of one model share its canonical name, which could then mean either."""
    seen: dict[str, Path] = {}
    for model, at in zip(models, places, strict=True):
        for word in (model["name"], *model.get("aliases", ())):
            if not isinstance(word, str):
                continue
            if word in seen:
                raise Refused(
                    at,
                    f"{quoted(word)} is the alias or model id of two entries, {seen[word][-1]} and {at[-1]}; requests "
                    "could not tell them apart. One checkpoint under two names is written as two [[model]] tables.",
                )
            seen[word] = at


def refuse(table: Mapping[str, Any], key: str, reason: str, at: Path, label: str) -> None:
    if table.get(key) not in (None, {}, []):
        raise Refused(
            (*at, key),
            f"{label}: {key} cannot be served: {reason}.",
        )


def text_at(table: Mapping[str, Any], key: str, at: Path, label: str) -> str:
    value = table.get(key)
    if not isinstance(value, str) or not value:
        what = "is missing" if value is None else f"must be a string, not {describe(value)}"
        raise Refused((*at, key), f"{label}: {key} {what}.")
    return value


def table_at(values: Mapping[str, Any], name: str, keys: Sequence[str], at: Path) -> Mapping[str, Any]:
    table = values.get(name, {})
    if not isinstance(table, Mapping):
        raise Refused((*at, name), f"{name} must be a table, not {describe(table)}.")
    for key in table:
        if keys and key not in keys:
            raise Refused(
                (*at, name, key),
                f"{name} has no key {quoted(key)}"
                + (did_you_mean(key, keys) or f"; it has {', '.join(keys)}."),
            )
    return table
