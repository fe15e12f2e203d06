"""A checkpoint on disk that a worker can map: what `formats.prepare` makes of any source."""

from __future__ import annotations

from typing import Literal

import msgspec


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Paths are absolute. `folder` holds config.json, tokenizer.json and their kin in Hugging Face's layout
    (for a GGUF: the converted copy in the cache); `weights` are the safetensors files to map, quantised or packed ones from
    the cache."""

    source: str  # as the operator wrote it
    name: str  # what the model is called where no name is given: short name, repository, file or folder name
    folder: str
    weights: tuple[str, ...]
    format: Literal["safetensors", "gguf", "pytorch"]  # of the original
    tokenizer_folder: str | None = None  # where the tokenizer comes from elsewhere (`tok_model_id`)
    # How the weights were packed: int8, int4 or int4-all by us, awq or gptq by who made the checkpoint, and both as `awq+int8`.
    quantization: str = "none"
