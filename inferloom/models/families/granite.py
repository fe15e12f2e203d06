"""Granite: a Llama whose embedding, residual stream, attention and logits are scaled."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from inferloom.models.config_json import number_of
from inferloom.models.families.llama import llama
from inferloom.models.spec import DecoderSpec


def granite(config: dict[str, Any]) -> DecoderSpec:
    return replace(
        llama(config),
        embedding_factor=number_of(config, "embedding_multiplier", 1.0),
        residual_factor=number_of(config, "residual_multiplier", 1.0),
        attention_scale=number_of(config, "attention_multiplier", 1.0),
        logit_factor=1.0 / number_of(config, "logits_scaling", 1.0),
    )
