"""What a command starts for itself where no server runs: one model of the user's configuration, or the one named."""

from __future__ import annotations

import msgspec

from inferloom.config.flags import from_flags
from inferloom.config.home import config_path
from inferloom.config.loading import load
from inferloom.config.schema import Config, ModelConfig
from inferloom.errors import ConfigError

STARTER = "smollm2"


def configured() -> Config:
    """The user's configuration; the starter model alone where there is none."""
    path = config_path()
    return load(path) if path.exists() else from_flags([STARTER])


def choose(name: str | None) -> Config:
    """A configuration of exactly the model that a command needs.

    `name` is a model of the user's file (id, alias or source), else a source of its own: a short name, a path, a
    repository. None means the file's default model, or the starter without a file.
    """
    path = config_path()
    if path.exists():
        config = load(path)
        model = _find(config, name)
        if model is not None:
            return only(config, model)
    return from_flags([name or STARTER])


def only(config: Config, model: ModelConfig) -> Config:
    """`config` with one model, loaded at once; without keys, because nobody else reaches it."""
    server = msgspec.structs.replace(config.server, default_model=model.name, api_keys=[], cors_origins=[])
    return msgspec.structs.replace(config, server=server, model=[msgspec.structs.replace(model, lazy=False)])


def _find(config: Config, name: str | None) -> ModelConfig | None:
    if name in (None, "default"):
        if config.default_model is None:
            raise ConfigError(f"{config_path()} declares no model: add a [[model]], or name one with -m")
        return config.default_model
    return next(
        (model for model in config.model if name in (model.name, *model.aliases, model.weights)), None
    )
