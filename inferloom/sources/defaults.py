"""What a short name brings along: the starters' system prompt, and float32 for embedding models."""

from __future__ import annotations

import msgspec

from inferloom.config.schema import Config, DriverConfig, ModelConfig
from inferloom.sources.table import SHORT_NAMES

_ACTIVATION = {field.name: field.default for field in msgspec.structs.fields(DriverConfig)}[
    "activation_dtype"
]


def with_defaults(config: Config) -> Config:
    """`config`, in which a model whose source is a short name has that row's values where it names none itself.

    A row's dtype holds for the weights and, unless the configuration chose another, for what is computed.
    """
    return msgspec.structs.replace(config, model=[_filled(model) for model in config.model])


def _filled(model: ModelConfig) -> ModelConfig:
    row = SHORT_NAMES.get(model.weights or "")
    if row is None:
        return model
    if model.system_prompt is None and row.system_prompt is not None:
        model = msgspec.structs.replace(model, system_prompt=row.system_prompt)
    if model.dtype == "auto" and row.dtype is not None:
        model = msgspec.structs.replace(model, dtype=row.dtype)
        if model.driver.activation_dtype == _ACTIVATION:
            driver = msgspec.structs.replace(model.driver, activation_dtype=row.dtype)
            model = msgspec.structs.replace(model, driver=driver)
    return model
