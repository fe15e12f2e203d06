"""Bytes of memory that a checkpoint takes once it is loaded, from the headers of its files and config.json alone.

No torch: the gateway asks, in a thread (a few milliseconds). `tests/worker/test_footprint.py` holds the answers against
workers that ran.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from inferloom.errors import Unsupported
from inferloom.formats.checkpoint import Checkpoint
from inferloom.formats.json_files import read_json
from inferloom.formats.layout import Layout
from inferloom.formats.model_shape import ModelShape, shape_of
from inferloom.formats.packed_file import Stored
from inferloom.formats.planned_weights import planned
from inferloom.formats.safetensors_file import ITEM_SIZES
from inferloom.formats.screens import is_screen
from inferloom.types import Footprint

PAGE_TOKENS = 32  # of one KV page: `models.batch.PAGE_SIZE`
CPU_STEP_TOKENS = 2048  # that a step on a CPU computes at most, unless its policy is greedy

# What a forked worker has of its own before its first request, beside weights: measured (private dirty memory) at 6 to 7 MiB
# for ten families of decoders and 7 to 9 for encoders; torch's threads, caches and arenas add up to 20 with the first ones.
_IDLE = 8 << 20
_ARENAS = 20 << 20
# Of its modules, which the forkserver has not imported (measured with two families: 147 MiB), and what thousands of its
# passes leave behind in malloc's arenas (measured: 300 MiB, whatever the model's size).
_TRANSFORMERS = 148 << 20
_TRANSFORMERS_ARENAS = 300 << 20

_ITEMS = {"float32": 4, "bfloat16": 2, "float16": 2}
_WORDS = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_KERNEL_FLOATS = ("F32", "BF16", "F16")
_POSITIONS = ("wpe.weight", "embed_positions.weight")
_TURNED = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")  # GPT-2 has them the other way round
_FUSED = ".query_key_value."  # GPT-NeoX: head by head


class Draft(msgspec.Struct, frozen=True):
    """A model that drafts for another one: its pages stand beside the other's."""

    checkpoint: Checkpoint
    quantization: str = "none"
    dtype: str = "auto"
    kv_dtype: str = "auto"


def step_tokens(max_batch_tokens: int, *, device: str, batch_policy: str) -> int:
    """The most tokens of one step. On a CPU more at once gain nothing, and would take memory that stays taken."""
    if device.startswith("cpu") and batch_policy != "greedy":
        return min(max_batch_tokens, CPU_STEP_TOKENS)
    return max_batch_tokens


def footprint_of(
    checkpoint: Checkpoint,
    *,
    quantization: str = "none",
    dtype: str = "auto",
    activation_dtype: str = "bfloat16",
    kv_dtype: str = "auto",
    device: str = "cpu",
    max_model_len: int | None = None,
    max_batch_size: int = 512,
    max_batch_tokens: int = 10240,
    batch_policy: str = "adaptive",
    native: bool = True,
    draft: Draft | None = None,
) -> Footprint:
    """What a worker will take for `checkpoint`, which may have to be converted or packed first: its `weights` may name a
    GGUF file. `native`: whether the compiled operators are there.

    Raises `InvalidFormat` and `OSError` for files that are damaged or missing, `Unsupported` for a quantization it cannot have.
    """
    if activation_dtype not in _ITEMS or dtype not in ("auto", *_ITEMS):
        raise Unsupported(f"{dtype} weights in {activation_dtype}", f"there are {', '.join(_ITEMS)}")
    config = config_of(checkpoint)
    shape, tensors = shape_of(config), planned(checkpoint, config, quantization)
    path = _path(shape, activation_dtype=activation_dtype, device=device, native=native)
    weights = _resident(tensors, path, dtype=dtype, activation_dtype=activation_dtype)
    own = shape.positions
    length = min(max_model_len or own, own)
    rows = max_batch_tokens
    if not shape.embeds:
        rows = step_tokens(max_batch_tokens, device=device, batch_policy=batch_policy)
    page, pages, least = 0, 0, 0
    if not shape.embeds:
        page = _page(shape, activation_dtype, kv_dtype)
        per_context = -(-length // PAGE_TOKENS)
        pages = max_batch_size * per_context
        least = per_context if max_model_len is not None else 1
    activations, logits = _activations(shape, tensors, path, rows=rows, sequences=min(max_batch_size, rows))
    tables = 4 * shape.ropes * min(2 * length, own) * shape.key_dim if shape.own else 0
    idle = _IDLE + (_TRANSFORMERS if path == "transformers" else 0)
    arenas = _ARENAS + (_TRANSFORMERS_ARENAS if path == "transformers" else 0)
    found = Footprint(
        weights=weights,
        kv_page=page,
        kv_pages=pages,
        kv_least=least,
        workspace=idle + arenas + activations + logits + tables,
        idle=idle,
    )
    if draft is None or shape.embeds:
        return found
    beside = footprint_of(
        draft.checkpoint,
        quantization=draft.quantization,
        dtype=draft.dtype,
        activation_dtype=activation_dtype,
        kv_dtype=draft.kv_dtype,
        device=device,
        max_batch_size=max_batch_size,
        max_batch_tokens=max_batch_tokens,
        batch_policy=batch_policy,
        native=native,
    )
    return msgspec.structs.replace(
        found,
        weights=found.weights + beside.weights,
        kv_page=found.kv_page + beside.kv_page,
        workspace=found.workspace + beside.workspace - beside.idle - _ARENAS,
    )


def config_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """The checkpoint's config.json; for a GGUF file that was not converted, the one that conversion will write."""
    gguf = next((name for name in checkpoint.weights if name.endswith(".gguf")), None)
    if gguf is not None:
        return _gguf_config(Path(gguf))
    return read_json(Path(checkpoint.folder) / "config.json")


def _gguf_config(path: Path) -> dict[str, Any]:
    from inferloom.formats import gguf_cache, gguf_config
    from inferloom.formats.gguf_file import GgufFile

    names: set[str] = set()
    vocab_size, metadata = 0, None
    for part in gguf_cache.parts(path):
        with GgufFile(part) as file:
            metadata = metadata or file.metadata
            names |= set(file.tensors)
            if "token_embd.weight" in file.tensors:
                vocab_size = file.tensors["token_embd.weight"].shape[0]
    assert metadata is not None
    return gguf_config.config_of(
        metadata,
        tied="output.weight" not in names,
        biased="blk.0.attn_q.bias" in names,
        vocab_size=vocab_size,
        rope_factors=None,
    )


# --- weights --------------------------------------------------------------------------------------------------------


def _path(shape: ModelShape, *, activation_dtype: str, device: str, native: bool) -> str:
    """What will compute it, as `models.loader` chooses: "step", "operators", "reference", "encoder", "transformers"."""
    if shape.embeds:
        return "encoder"
    if not shape.own:
        return "transformers"
    if activation_dtype != "bfloat16" or not device.startswith("cpu") or not native:
        return "reference"
    return "step" if shape.stepped else "operators"


def _resident(tensors: Sequence[Stored], path: str, *, dtype: str, activation_dtype: str) -> int:
    """Bytes of the mapped tensors and of the copies that a worker makes; where all are copied, of the copies alone."""
    stored = _stored_dtype(tensors)
    compute = {"step": "F32", "encoder": stored if dtype == "auto" else _WORDS[dtype]}.get(
        path, _WORDS[activation_dtype]
    )
    rounded = None if dtype == "auto" else _WORDS[dtype]
    mapped, copied, kept = 0, 0, False
    for tensor in tensors:
        if is_screen(tensor.name) and path != "step":
            continue  # mapped and never read
        form = _form(tensor, path, compute=compute, rounded=rounded)
        mapped += tensor.size
        if form is None:
            kept = True
        else:
            copied += _values(tensor) * ITEM_SIZES[form]
    return copied + (mapped if kept else 0)


def _form(tensor: Stored, path: str, *, compute: str, rounded: str | None) -> str | None:
    """The dtype that a tensor is copied into; None: its mapped bytes are used as they are."""
    word = (rounded or tensor.dtype) if tensor.layout is None else None
    if path == "transformers":
        return compute
    as_stored = path in ("step", "operators") and len(tensor.shape) == 2
    if as_stored and not tensor.name.endswith(_POSITIONS):
        if path == "step" and (tensor.name.endswith(_TURNED) or _FUSED in tensor.name):
            return word or compute
        if word is None or (word == tensor.dtype and word in _KERNEL_FLOATS):
            return None
        return word if word in _KERNEL_FLOATS else compute
    return None if tensor.layout is None and tensor.dtype == word == compute else compute


def _stored_dtype(tensors: Sequence[Stored]) -> str:
    counts: dict[str, int] = {}
    for tensor in tensors:
        if tensor.layout is None:
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + _values(tensor)
    return max(counts, key=lambda word: counts[word], default="F32")


def _values(tensor: Stored) -> int:
    count = 1
    for extent in tensor.shape:
        count *= extent
    return count


# --- pages and workspace --------------------------------------------------------------------------------------------


def _page(shape: ModelShape, activation_dtype: str, kv_dtype: str) -> int:
    return shape.int8_page_bytes() if kv_dtype == "int8" else shape.page_bytes(_ITEMS[activation_dtype])


def _activations(
    shape: ModelShape, tensors: Sequence[Stored], path: str, *, rows: int, sequences: int
) -> tuple[int, int]:
    """Bytes of a step of `rows` tokens, and of the logits of `sequences`.

    The native step's buffers are those of `Decoder::reserve` in `csrc/decoder.cpp`: the residual stream and what is added
    to it, queries, keys and values, the attention's output, in float32; and the rows that matrices read, in each form that
    one of their layouts wants. Other paths hold a few of the same at once, in the dtype of the arithmetic.
    """
    queries, keys = shape.heads * shape.key_dim, shape.kv_heads * (shape.key_dim + shape.value_dim)
    wide = shape.hidden + queries + shape.inner
    if path == "step":
        floats = 2 * shape.hidden + (queries + keys) + queries
        row = 4 * floats + _form_bytes(tensors) * wide
        logits = sequences * (4 * shape.vocab + 8 * shape.hidden)
        return int(rows * row), logits
    if path == "encoder":
        return rows * 4 * (2 * shape.hidden + shape.inner), 0
    return rows * 4 * (
        2 * shape.hidden + 2 * queries + keys + 3 * shape.inner
    ), 2 * sequences * 4 * shape.vocab


def _form_bytes(tensors: Sequence[Stored]) -> float:
    """Bytes of one activation in all the forms that the layouts of the matrices want."""
    layouts = {tensor.layout or _LAYOUTS.get(tensor.dtype) for tensor in tensors if len(tensor.shape) == 2}
    forms = 0.0
    if any(layout is not None and layout.quantised for layout in layouts):
        forms += 1 + 12 / 32  # int8, and three floats for a group
    if Layout.BF16 in layouts:
        forms += 2
    if layouts & {Layout.F32, Layout.F16}:
        forms += 4
    return forms


_LAYOUTS: Mapping[str, Layout] = {"F32": Layout.F32, "F16": Layout.F16, "BF16": Layout.BF16}
