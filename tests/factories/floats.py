"""A checkpoint as other libraries read it: its packed matrices written as floats."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from inferloom.formats.checkpoint import Checkpoint
from inferloom.formats.layouts import PackedTensor, dequantise
from inferloom.formats.weights import open_weights


def as_floats(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write `checkpoint` to `folder`, every tensor in `dtype`, and return the folder."""
    shutil.copytree(
        checkpoint.folder, folder, ignore=shutil.ignore_patterns("*.safetensors", "inferloom.json")
    )
    weights = open_weights(checkpoint)
    floats = {
        name: dequantise(tensor, dtype) if isinstance(tensor, PackedTensor) else tensor.to(dtype)
        for name, tensor in weights.items()
    }
    save_file(floats, folder / "model.safetensors", {"format": "pt"})
    weights.close()
    return folder
