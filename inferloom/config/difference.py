"""What is different between two configurations, and what it takes to have each key hold in a running server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import msgspec

from inferloom.config.changing import OF_THE_NAME
from inferloom.config.lines import Path
from inferloom.config.problems import dotted
from inferloom.config.schema import Config, ModelConfig

REDACTED = "<redacted>"  # in place of a secret

Effect = Literal["now", "reload", "restart", "added", "removed"]

# Keys that hold at once. Of a model these are the name's own, of everything else none but these.
AT_ONCE: dict[str, frozenset[str]] = {
    "server": frozenset(
        {
            "verbose",
            "api_keys",
            "insecure",
            "default_model",
            "max_concurrent_requests",
            "log_level",
            "access_log",
            "drain_timeout_secs",
            "queue_timeout_secs",
            "load_timeout_secs",
            "first_token_timeout_secs",
            "keep_alive",
            "max_loaded",
            "max_waiting",
            "swap_policy",
            "allow_model_changes",
        }
    ),
    "runtime": frozenset({"memory_budget"}),
}
_SECRET = ("server", "api_keys")


class KeyChange(msgspec.Struct, frozen=True, kw_only=True):
    """One key that is not what it was; of a model that is added or removed, the model. `before` and `after` are plain values
    (null: unset), never secrets. A reload is the model's alone: it serves on until its new worker takes over."""

    key: str  # as `server.keep_alive`, `model.NAME.driver.device`
    model: str | None = None
    before: Any = None
    after: Any = None
    effect: Effect


def differences(before: Config, after: Config) -> list[KeyChange]:
    """Every key that differs, sections first, models in the order of `after` and then those that go."""
    found: list[KeyChange] = []
    old, new = _plain(before), _plain(after)
    for section in ("server", "auth", "telemetry", "runtime"):
        now = AT_ONCE.get(section, frozenset())
        for path, was, will in _leaves(old[section], new[section], (section,)):
            effect: Effect = "now" if path[1] in now else "restart"
            if path[:2] == _SECRET:
                was, will = REDACTED if was else None, REDACTED if will else None
            found.append(KeyChange(key=dotted(path), before=was, after=will, effect=effect))
    known, wanted = ({model.name: model for model in one.model} for one in (before, after))
    for name, model in wanted.items():
        if name in known:
            found += _of_model(known[name], model)
        else:
            found.append(KeyChange(key=f"model.{name}", model=name, after=_described(model), effect="added"))
    for name, model in known.items():
        if name not in wanted:
            found.append(
                KeyChange(key=f"model.{name}", model=name, before=_described(model), effect="removed")
            )
    return found


def _of_model(before: ModelConfig, after: ModelConfig) -> Iterator[KeyChange]:
    """A model that drafts for others is read by them when they load: a change of it is none of them."""
    old, new = msgspec.to_builtins(before), msgspec.to_builtins(after)
    for path, was, will in _leaves(old, new, ("model", after.name)):
        effect: Effect = "now" if path[2] in OF_THE_NAME else "reload"
        yield KeyChange(key=dotted(path), model=after.name, before=was, after=will, effect=effect)


def _plain(config: Config) -> dict[str, Any]:
    """As plain values, with the default model by its id: an unset key means the first model, which may be another one."""
    default = config.default_model
    server = msgspec.structs.replace(config.server, default_model=None if default is None else default.name)
    values: dict[str, Any] = msgspec.to_builtins(msgspec.structs.replace(config, server=server))
    return values


def _leaves(before: Any, after: Any, at: Path) -> Iterator[tuple[Path, Any, Any]]:
    if before == after:
        return
    if isinstance(before, Mapping) and isinstance(after, Mapping) and (before or after):
        for key in dict.fromkeys([*before, *after]):
            yield from _leaves(before.get(key), after.get(key), (*at, key))
    else:
        yield at, before, after


def _described(model: ModelConfig) -> str:
    return model.weights or model.driver.type
