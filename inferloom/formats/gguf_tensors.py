"""A GGUF file's tensors under their Hugging Face names, in the kernels' layouts, a few megabytes at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from inferloom.errors import InvalidFormat, LoadFailed
from inferloom.formats import gguf_blocks
from inferloom.formats.gguf_file import GgufFile, TensorInfo
from inferloom.formats.interleaving import values_of
from inferloom.formats.layout import ROWS, Layout
from inferloom.formats.packed_file import Stored
from inferloom.formats.quantiser import pack_q4_dithered
from inferloom.formats.screens import screen_of
from inferloom.formats.threads import each

WHOLE = {
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
_CHUNK = 1 << 18  # elements converted at a time: intermediate results stay in the cache


class Placed(msgspec.Struct, frozen=True):
    """A tensor to write: its Hugging Face name, and for Q and K of Llama files the heads whose rows are interleaved. `is_screen`:
    not the matrix itself is written, but its screen."""

    name: str
    tensor: TensorInfo
    file: GgufFile
    interleaved_heads: int = 0
    is_screen: bool = False


def place(files: list[GgufFile], config: Mapping[str, Any], *, family: str) -> list[Placed]:
    """Every tensor of `files` by its Hugging Face name, in that order, and the output matrix's screen where it has one. Raises for
    a tensor that no model here has."""
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    placed: dict[str, Placed] = {}
    for file in files:
        for tensor in file.tensors.values():
            if tensor.name == _ROPE_FACTORS:
                continue
            match = _BLOCK.fullmatch(tensor.name)
            if tensor.name in WHOLE:
                name, part = WHOLE[tensor.name], ""
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
    head = placed.get("lm_head.weight") or placed["model.embed_tokens.weight"]
    screen = screen_of(stored(head))
    if screen is not None:
        placed[screen.name] = msgspec.structs.replace(head, name=screen.name, is_screen=True)
    return [placed[name] for name in sorted(placed)]


def rope_factors(files: list[GgufFile]) -> list[float] | None:
    """The values of rope_freqs.weight, if the files have it."""
    for file in files:
        tensor = file.tensors.get(_ROPE_FACTORS)
        if tensor is not None:
            if tensor.elements > 1 << 16:
                raise InvalidFormat(f"{_ROPE_FACTORS} has {tensor.elements:,} values.")
            raw = np.frombuffer(file.bytes_of(tensor), dtype=np.uint8).reshape(1, -1)
            return [
                float(value) for value in gguf_blocks.dequantised(raw, tensor.type, name=tensor.name).ravel()
            ]
    return None


def stored(placed: Placed) -> Stored:
    """How the tensor is written: a quantised matrix in its layout, a quantised vector in float32, floats as they are."""
    tensor = placed.tensor
    dtype = gguf_blocks.FLOATS.get(tensor.type)
    if dtype is not None:
        return Stored(placed.name, tensor.shape, dtype)
    if len(tensor.shape) != 2:
        return Stored(placed.name, tensor.shape, "F32")
    layout = Layout.Q4_DITHERED if placed.is_screen else gguf_blocks.layout_of(tensor.type)
    return Stored(placed.name, tensor.shape, layout=layout)


def pieces(placed: Placed) -> Iterator[memoryview]:
    """The tensor's bytes as `stored` says, in pieces of a few megabytes."""
    tensor = placed.tensor
    table, order = _table(placed)
    packed = stored(placed).layout is not None
    quantised = tensor.type not in gguf_blocks.FLOATS
    step = max(1, _CHUNK * len(table) // max(1, tensor.elements))
    if packed:
        step = -(-step // ROWS) * ROWS

    def piece(start: int) -> memoryview:
        part = slice(start, start + step)
        rows = np.ascontiguousarray(table[part] if order is None else table[order[part]])
        if packed:
            missing = -len(rows) % ROWS
            if missing:  # a block of zero bytes is zero in every type
                rows = np.pad(rows, ((0, missing), (0, 0)))
            rows = gguf_blocks.pack(rows, tensor.type, name=tensor.name)
            if placed.is_screen:
                rows = _screened(values_of(rows, gguf_blocks.layout_of(tensor.type)), tensor.name)
        elif quantised:
            return gguf_blocks.dequantised(rows, tensor.type, name=tensor.name).data.cast("B")
        return rows.data.cast("B")

    if tensor.elements:
        yield from each(piece, range(0, len(table), step))


def _screened(values: NDArray[np.float32], name: str) -> NDArray[np.uint8]:
    try:
        return pack_q4_dithered(values)
    except InvalidFormat as error:
        raise InvalidFormat(f"the tensor {name!r} cannot have a screen: {error.message}.") from None


def _table(placed: Placed) -> tuple[NDArray[np.uint8], NDArray[np.intp] | None]:
    """The tensor's bytes by rows, and where Hugging Face's rows lie in it; a vector whose order differs has one value a
    row, any other a single row."""
    tensor, heads = placed.tensor, placed.interleaved_heads
    raw = np.frombuffer(placed.file.bytes_of(tensor), dtype=np.uint8)
    matrix = len(tensor.shape) > 1
    rows = tensor.elements // tensor.shape[-1] if matrix and tensor.elements else 1
    if heads and not matrix:
        rows = tensor.elements
    return raw.reshape(rows, -1), _order(rows, heads) if heads else None


def _order(rows: int, heads: int) -> NDArray[np.intp]:
    """Where Hugging Face's row i lies in a llama.cpp file, which keeps the two halves of a head interleaved."""
    return np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).ravel()
