"""A GGUF file's tensors under their Hugging Face names, in bf16, without holding more than a few megabytes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
import numpy as np
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from inferloom.errors import InvalidFormat, LoadFailed
from inferloom.formats.gguf_file import GgufFile, TensorInfo

_WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_ROPE_FACTORS = "rope_freqs.weight"
_PLAIN = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}
_CHUNK = 1 << 20  # elements converted at a time: 4 MiB as float32


class Placed(msgspec.Struct, frozen=True):
    """A tensor to write: its Hugging Face name, and for Q and K of Llama files the heads whose rows are interleaved."""

    name: str
    tensor: TensorInfo
    file: GgufFile
    interleaved_heads: int = 0


def place(files: list[GgufFile], config: Mapping[str, Any], *, family: str) -> list[Placed]:
    """Every tensor of `files` by its Hugging Face name, in that order. Raises for one that no model here has."""
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    placed: dict[str, Placed] = {}
    for file in files:
        for tensor in file.tensors.values():
            if tensor.name == _ROPE_FACTORS:
                continue
            match = _BLOCK.fullmatch(tensor.name)
            if tensor.name in _WHOLE:
                name, part = _WHOLE[tensor.name], ""
            elif match is not None and match[2] in _LAYER and int(match[1]) < config["num_hidden_layers"]:
                name, part = f"model.layers.{int(match[1])}.{_LAYER[match[2]]}.{match[3]}", match[2]
            else:
                raise LoadFailed(
                    f"the GGUF file has a tensor {tensor.name!r} that this version does not know."
                )
            if name in placed:
                raise InvalidFormat(f"the tensor {tensor.name!r} is in the GGUF file twice.")
            swap = heads.get(part, 0) if family == "llama" else 0
            if swap and (not tensor.shape or tensor.shape[0] % (2 * swap)):
                raise InvalidFormat(
                    f"{tensor.name!r} has {tensor.shape} rows, which {swap} heads cannot share."
                )
            placed[name] = Placed(name, tensor, file, swap)
    layers = {name.split(".")[2] for name in placed if name.startswith("model.layers.")}
    if len(layers) != config["num_hidden_layers"]:
        raise InvalidFormat(f"the GGUF file has {len(layers)} of its {config['num_hidden_layers']} layers.")
    return [placed[name] for name in sorted(placed)]


def rope_factors(files: list[GgufFile]) -> list[float] | None:
    """The values of rope_freqs.weight, if the files have it."""
    for file in files:
        tensor = file.tensors.get(_ROPE_FACTORS)
        if tensor is not None:
            if tensor.elements > 1 << 16:
                raise InvalidFormat(f"{_ROPE_FACTORS} has {tensor.elements:,} values.")
            return [float(value) for value in _rows(Placed("", tensor, file))(0, 1).ravel()]
    return None


def as_bf16(placed: Placed) -> Iterator[memoryview]:
    """The tensor's values as little-endian bf16, row-major, in pieces of about 2 MiB."""
    tensor = placed.tensor
    width = tensor.shape[-1] if len(tensor.shape) > 1 else tensor.elements
    count = tensor.elements // width if width else 0
    rows = _rows(placed)
    step = max(1, _CHUNK // max(1, width))
    for start in range(0, count, step):
        yield to_bf16(rows(start, min(count, start + step))).data.cast("B")


def to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """float32 → the bits of bf16, rounded to nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (
        (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    ).astype(np.uint16)
    nan = np.isnan(values)
    if nan.any():
        rounded[nan] = 0x7FC0
    return rounded


def _rows(placed: Placed) -> Callable[[int, int], NDArray[np.float32]]:
    """A function from a range of rows to their values in float32."""
    tensor = placed.tensor
    raw = np.frombuffer(placed.file.bytes_of(tensor), dtype=np.uint8)
    width = tensor.shape[-1] if len(tensor.shape) > 1 else tensor.elements
    count = tensor.elements // width if width else 0
    table = raw.reshape(count, -1) if count else raw.reshape(0, 0)
    if placed.interleaved_heads and len(tensor.shape) == 1:
        table = raw.reshape(tensor.elements, -1)
        table = np.ascontiguousarray(table[_order(tensor.elements, placed.interleaved_heads)]).reshape(1, -1)
    elif placed.interleaved_heads:
        order = _order(count, placed.interleaved_heads)
        return lambda start, stop: _dequantized(table[order[start:stop]], tensor)
    return lambda start, stop: _dequantized(table[start:stop], tensor)


def _order(rows: int, heads: int) -> NDArray[np.intp]:
    """Where Hugging Face's row i lies in a llama.cpp file, which keeps the two halves of a head interleaved."""
    return np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).ravel()


def _dequantized(table: NDArray[np.uint8], tensor: TensorInfo) -> NDArray[np.float32]:
    plain = _PLAIN.get(tensor.type)
    table = np.ascontiguousarray(table)
    try:
        values = table.view(plain) if plain is not None else dequantize(table, tensor.type)
    except NotImplementedError:
        raise LoadFailed(
            f"the tensor {tensor.name!r} is quantised as {tensor.type.name}, which cannot be read."
        ) from None
    return np.asarray(values, dtype=np.float32)
