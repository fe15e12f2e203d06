"""One model of a configuration as somebody would have it at run time: merged, checked with all others, and what of it is the
operator's alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from inferloom.config.checking import check
from inferloom.config.decoding import decode
from inferloom.config.loading import normalised
from inferloom.config.problems import Problems, dotted
from inferloom.config.schema import Config, ModelConfig
from inferloom.errors import InvalidRequest

# Keys of a model that belong to its name: models that differ in nothing else can share a worker, and a change of them
# disturbs nobody.
OF_THE_NAME = frozenset(
    {"name", "aliases", "system_prompt", "keep_alive", "pin", "priority", "group", "lazy"}
)

# What says which files are read, which code runs and which devices are taken.
OF_THE_OPERATOR = (
    ("source",),
    ("hf_repo",),
    ("tok_model_id",),
    ("chat_template",),
    ("jinja_explicit",),
    ("num_device_layers",),
    ("trust_remote_code",),
    ("driver", "type"),
    ("driver", "device"),
)


def operators_key(options: Mapping[str, Any]) -> str | None:
    """The first of the given keys that is the operator's alone; None: there is none."""
    for path in OF_THE_OPERATOR:
        here: Any = options
        for segment in path:
            here = here.get(segment, msgspec.UNSET) if isinstance(here, Mapping) else msgspec.UNSET
        if here is not msgspec.UNSET:
            return dotted(path)
    return None


def merged(values: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `options` in it: tables are merged, null takes a key out (RFC 7396, JSON merge patch)."""
    result = dict(values)
    for key, value in options.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping):
            below = result.get(key)
            result[key] = merged(below if isinstance(below, Mapping) else {}, value)
        else:
            result[key] = value
    return result


def with_options(config: Config, model: ModelConfig, options: Mapping[str, Any]) -> ModelConfig:
    """`model` with `options`, in place of the one of its name in `config` or beside them all.

    Raises `InvalidRequest` naming the key, also where another model would be what is wrong.
    """
    values = merged(_values(model), options)
    if "source" in options:
        values.pop("hf_repo", None)
    models = [_values(one) for one in config.model]
    number = next((n for n, one in enumerate(config.model) if one.name == model.name), len(models))
    models[number : number + 1] = [values]
    return _checked(config, models).model[number]


def without(config: Config, name: str) -> Config:
    """`config` without a model. Raises `InvalidRequest` where others need it."""
    return _checked(config, [_values(one) for one in config.model if one.name != name])


def _values(model: ModelConfig) -> dict[str, Any]:
    """Only what is set: a key that is not there has its default."""
    values = msgspec.to_builtins(model)
    assert isinstance(values, dict)
    return {key: value for key, value in values.items() if value is not None}


def _checked(config: Config, models: list[dict[str, Any]]) -> Config:
    problems = _Places("")
    values = normalised({**msgspec.to_builtins(config), "model": models})
    found = decode(values, Config, problems=problems)
    if found is not None:
        check(found, problems)
    if problems.first is not None:
        place, sentence = problems.first
        raise InvalidRequest(sentence, param=place)
    assert found is not None
    return found


class _Places(Problems):
    """Remembers the first problem as a request's: the key below its model, and the sentence without the model's number."""

    first: tuple[str, str] | None = None

    def add(self, path: tuple[str | int, ...], sentence: str) -> None:
        if self.first is None:
            key = dotted(path[2:]) if path[:1] == ("model",) and len(path) > 2 else dotted(path)
            for start in (f"{dotted(path[:2])}.", f"{dotted(path[:2])}: "):
                sentence = sentence.removeprefix(start)
            self.first = (key, sentence)
        super().add(path, sentence)
