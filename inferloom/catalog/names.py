"""What models are called: id, aliases, the canonical name of the source, and `default`."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from inferloom.config.schema import ModelConfig
from inferloom.errors import ConfigError, Conflict, ModelNotFound
from inferloom.sources.table import SHORT_NAMES

DEFAULT = "default"


class Names:
    """Resolves any name of a model to its id.

    An id wins over an alias, an alias over a canonical name; of several models with one source the canonical name
    means the first. Raises `ConfigError` for names that cannot be told apart.
    """

    def __init__(self, models: Sequence[ModelConfig], *, default: str | None = None) -> None:
        self.ids = [model.name for model in models]
        self._names: dict[str, str] = {}
        for model in models:
            self._declare(model.name, model.name)
        for model in models:
            for alias in model.aliases:
                self._declare(alias, model.name)
        for model in models:
            for canonical in _canonical(model):
                self._names.setdefault(canonical, model.name)
        self.default = self._default(default)
        if DEFAULT in self._names and self._names[DEFAULT] != self.default:
            raise ConfigError(
                f"the name {DEFAULT!r} belongs to the model {self._names[DEFAULT]!r}, but the default model is "
                f"{self.default!r}; a model of that name must be the default one"
            )

    def resolve(self, name: str | None) -> str:
        """The id behind `name`; nothing and `default` mean the default model. Raises `ModelNotFound`."""
        if name is None:
            return self._the_default()
        found = self._names.get(name)
        if found is not None:
            return found
        stripped = name.strip()
        if stripped in ("", DEFAULT):
            return self._the_default()
        close = difflib.get_close_matches(name, self._names, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        served = ", ".join(self.ids) or "none"
        raise ModelNotFound(f"model not found: {name!r}.{hint} Served here: {served}.", param="model")

    def set_default(self, id_: str) -> None:
        """Raises `Conflict` where a model is called `default`, which it must then be."""
        if self._names.get(DEFAULT, id_) != id_:
            raise Conflict(
                f"the name {DEFAULT!r} belongs to the model {self._names[DEFAULT]!r}, which must stay the default model"
            )
        self.default = id_

    def _the_default(self) -> str:
        if self.default is None:
            raise ModelNotFound(
                "model not found: no model is configured, so there is no default", param="model"
            )
        return self.default

    def _declare(self, name: str, model: str) -> None:
        other = self._names.setdefault(name, model)
        if other != model:
            raise ConfigError(f"the name {name!r} stands for two models, {other!r} and {model!r}")

    def _default(self, wanted: str | None) -> str | None:
        if wanted is None:
            return self.ids[0] if self.ids else None
        try:
            return self._names[wanted]
        except KeyError:
            served = ", ".join(self.ids) or "none"
            raise ConfigError(
                f"server.default_model is {wanted!r}, which is no model of this configuration; there are: {served}"
            ) from None


def _canonical(model: ModelConfig) -> list[str]:
    """The source as written, and what a short name stands for."""
    if model.weights is None:
        return []
    short = SHORT_NAMES.get(model.weights)
    return [model.weights] if short is None else [model.weights, short.source]
