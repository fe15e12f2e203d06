"""The older schema: dotted `[model.<name>]` tables, admission keys at the top, options under the driver's name.

It is recognised and refused with the new place of every old key; `migration.py` rewrites it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from inferloom.config.drivers import ALIASES, LATER, OPTIONS
from inferloom.config.lines import Path, line_of
from inferloom.config.schema import ModelConfig
from inferloom.errors import ConfigError

DRIVER_NAMES = frozenset((*OPTIONS, *ALIASES, *LATER))

# Old key of a model -> (table, key) below the new [[model]].
MOVED = {
    "default_token_budget": ("scheduler", "default_token_limit"),
    "default_token_limit": ("scheduler", "default_token_limit"),
    "default_endowment_pages": ("scheduler", "default_endowment_pages"),
    "oversubscription_factor": ("scheduler", "admission_oversubscription_factor"),
}


def refuse_older_schema(values: Mapping[str, Any], lines: dict[Path, int], *, origin: str) -> None:
    """Raise ConfigError, naming the new place of each old key, if `values` follow the older schema."""
    found = list(old_keys(values))
    if not found:
        return
    listed = sorted(
        ((line_of(lines, path) or 0, old, new) for path, old, new in found), key=lambda item: item[0]
    )
    moves = "\n".join(f"  line {line}: {old} -> {new}" for line, old, new in listed)
    raise ConfigError(
        f"{origin}: this is the older configuration schema, which is no longer read. "
        f"`inferloom config migrate` rewrites the file; the new places are:\n{moves}"
    )


def old_keys(values: Mapping[str, Any]) -> Iterator[tuple[Path, str, str]]:
    """Every key of the older schema: its path, how it is written, and where it belongs now."""
    server = values.get("server")
    if isinstance(server, Mapping):
        if "primary_model" in server:
            yield (
                ("server", "primary_model"),
                "[server].primary_model",
                "removed: the first [[model]] is the default, or the one [server].default_model names",
            )
        if "allow_filesystem" in server:
            yield ("server", "allow_filesystem"), "[server].allow_filesystem", "[runtime].allow_fs"
    models = values.get("model")
    if isinstance(models, Mapping):
        for name, model in models.items():
            if is_single_table(models):
                yield ("model",), "[model]", "[[model]], with two brackets: an array of tables"
                yield from _model_keys(models, ("model",), "[model]")
                return
            if isinstance(model, Mapping):
                yield ("model", name), f"[model.{name}]", f'[[model]] with name = "{name}"'
                yield from _model_keys(model, ("model", name), f"[model.{name}]")
    elif isinstance(models, list):
        for number, model in enumerate(models):
            if isinstance(model, Mapping):
                yield from _model_keys(model, ("model", number), "[[model]]")


def is_single_table(models: Mapping[str, Any]) -> bool:
    """True for `[model]` with keys of one model in it, rather than tables called after models."""
    known = ModelConfig.__struct_fields__
    return any(
        key in known and (key in ("driver", "scheduler") or not isinstance(models[key], Mapping))
        for key in models
    )


def _model_keys(model: Mapping[str, Any], path: Path, written: str) -> Iterator[tuple[Path, str, str]]:
    for key, (table, new) in MOVED.items():
        if key in model:
            yield (*path, key), f"{written}.{key}", f"[model.{table}].{new}"
    inner = written.strip("[]")
    scheduler = model.get("scheduler")
    if isinstance(scheduler, Mapping) and "policy" in scheduler:
        yield (*path, "scheduler", "policy"), f"[{inner}.scheduler].policy", "[model.scheduler].batch_policy"
    driver = model.get("driver")
    if isinstance(driver, Mapping):
        for name, options in driver.items():
            if name in DRIVER_NAMES and isinstance(options, Mapping):
                yield (*path, "driver", name), f"[{inner}.driver.{name}]", "[model.driver.options]"
