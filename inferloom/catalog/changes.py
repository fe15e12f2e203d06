"""The models of one configuration become those of another while they serve: only what differs is touched."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import msgspec

from inferloom.catalog.catalog import Catalog
from inferloom.config.schema import Config, ModelConfig
from inferloom.errors import ConfigError, InferloomError
from inferloom.sources.defaults import with_defaults


class ModelChanges(msgspec.Struct, frozen=True, kw_only=True):
    """`changed`: models with the keys that differ, which alone are set. `default`: the default model, where it differs."""

    added: tuple[ModelConfig, ...] = ()
    changed: tuple[tuple[ModelConfig, dict[str, Any]], ...] = ()
    removed: tuple[str, ...] = ()
    default: str | None = None


def model_changes(before: Config, after: Config) -> ModelChanges:
    """What differs between the models of two configurations."""
    before, after = with_defaults(before), with_defaults(after)
    known = {model.name: model for model in before.model}
    wanted = {model.name: model for model in after.model}
    pairs = [(model, differing(known[name], model)) for name, model in wanted.items() if name in known]
    was, will = before.default_model, after.default_model
    return ModelChanges(
        added=tuple(model for name, model in wanted.items() if name not in known),
        changed=tuple((model, keys) for model, keys in pairs if keys),
        removed=tuple(name for name in known if name not in wanted),
        default=None if will is None or (was is not None and was.name == will.name) else will.name,
    )


def differing(before: ModelConfig, after: ModelConfig) -> dict[str, Any]:
    """The keys of a model that are not what they were."""
    return {
        name: getattr(after, name)
        for name in ModelConfig.__struct_fields__
        if getattr(after, name) != getattr(before, name)
    }


async def apply(
    catalog: Catalog, changes: ModelChanges, *, fallback: str | None
) -> dict[str, InferloomError]:
    """Change what differs; returns the models for which that failed, which are what they were, with the reason.

    Models that were declared, changed or removed meanwhile become what the configuration says where it says something of
    them. `fallback`: the default model, should that one be removed.
    """
    failed: dict[str, InferloomError] = {}
    if changes.default in _ids(catalog):
        catalog.set_default(changes.default or "")
    going = [name for name in changes.removed if name in _ids(catalog) and name != catalog.default.id]
    changing: list[tuple[str, Awaitable[object]]] = []
    for model, keys in changes.changed:
        changing.append((model.name, _change(catalog, model, keys)))
    changing += [(name, catalog.remove(name)) for name in going]
    await asyncio.gather(*(_attempt(failed, name, work) for name, work in changing))
    for model, keys in changes.changed:
        # a name that another one had, which has changed now
        if isinstance(failed.get(model.name), ConfigError):
            await _attempt(failed, model.name, _change(catalog, model, keys))
    for model in changes.added:
        keys = differing(catalog.resolve(model.name).config, model) if model.name in _ids(catalog) else {}
        await _attempt(failed, model.name, _change(catalog, model, keys))
    late = [name for name in changes.removed if name in _ids(catalog) and name not in failed]
    chosen = changes.default if changes.default is not None or not late else fallback
    if chosen is not None and chosen in _ids(catalog):
        catalog.set_default(chosen)
    for name in late:
        await _attempt(failed, name, catalog.remove(name))
    return failed


async def _change(catalog: Catalog, model: ModelConfig, keys: dict[str, Any]) -> None:
    if model.name in _ids(catalog):
        await catalog.change(model.name, **keys)
    else:
        catalog.add(model, load=not model.lazy)


async def _attempt(failed: dict[str, InferloomError], name: str, work: Awaitable[object]) -> None:
    failed.pop(name, None)
    try:
        await work
    except InferloomError as error:
        failed[name] = error


def _ids(catalog: Catalog) -> set[str]:
    return {entry.id for entry in catalog.entries()}
