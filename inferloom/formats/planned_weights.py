"""The tensors of a checkpoint as they will lie in memory, from the headers of its files alone: what is to be packed is taken
as packed (`packing_plan`), in the sizes that the layouts' tables say. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from inferloom.formats.checkpoint import Checkpoint
from inferloom.formats.layout import Layout
from inferloom.formats.packed_file import Stored, packed_entries
from inferloom.formats.packing_plan import Scheme, left_out, method_of, scheme_of, target
from inferloom.formats.safetensors_file import TensorHeader, read_header
from inferloom.formats.screens import screen_of

_PARTS = re.compile(r"(.*)\.(qweight|qzeros|scales|g_idx)")
_IN_A_WORD = 8  # numbers of four bits


def planned(checkpoint: Checkpoint, config: Mapping[str, Any], quantization: str) -> list[Stored]:
    """The tensors that a worker will map, once `checkpoint` is prepared with `quantization`; `config` is its config.json.

    Raises `Unsupported` for a quantization that it cannot have, `InvalidFormat` for damaged files, `OSError`.
    """
    stored = list(_stored(checkpoint))
    if checkpoint.quantization != "none":  # packed already
        return stored
    described = config.get("quantization_config")
    method = method_of(described) if isinstance(described, dict) and described else ""
    scheme = scheme_of(quantization, config, method=method)
    if scheme.method:
        stored = list(_assembled(stored, scheme.method))
    changed = [_packed(tensor, scheme) for tensor in stored]
    if changed == stored and not scheme.method:
        return stored
    tied = bool(config.get("tie_word_embeddings"))
    return [tensor for tensor in changed if not left_out(tensor.name, scheme, tied=tied)]


def _packed(tensor: Stored, scheme: Scheme) -> Stored:
    layout = target(tensor.name, tensor.shape, tensor.dtype, tensor.layout, scheme)
    return tensor if layout is None else Stored(tensor.name, tensor.shape, layout=layout)


def _stored(checkpoint: Checkpoint) -> Iterable[Stored]:
    for name in checkpoint.weights:
        path = Path(name)
        if path.suffix == ".gguf":
            yield from _of_gguf(path)
        elif path.suffix == ".bin":
            yield from _of_pickle(path)
        else:
            yield from _of_safetensors(path)


def _of_safetensors(path: Path) -> Iterable[Stored]:
    header = read_header(path)
    entries = packed_entries(header, path.name)
    for name, tensor in header.tensors.items():
        if name in entries:
            layout, shape = entries[name]
            yield Stored(name, shape, layout=layout)
        else:
            yield _plain(tensor)


def _plain(tensor: TensorHeader) -> Stored:
    return Stored(tensor.name, tensor.shape, tensor.dtype)


def _of_gguf(path: Path) -> Iterable[Stored]:
    """A file that was not converted yet."""
    from inferloom.formats import gguf_blocks, gguf_cache
    from inferloom.formats.gguf_file import GgufFile
    from inferloom.formats.gguf_tensors import WHOLE

    found: dict[str, Stored] = {}
    for part in gguf_cache.parts(path):
        with GgufFile(part) as file:
            for tensor in file.tensors.values():
                layout = gguf_blocks.layout_of(tensor.type)
                shape = tuple(tensor.shape)
                name = WHOLE.get(
                    tensor.name, tensor.name
                )  # by which packing knows embedding and output matrix
                if layout.quantised and len(shape) == 2:
                    found[name] = Stored(name, shape, layout=layout)
                else:
                    found[name] = Stored(name, shape, "F32" if layout.quantised else layout.name)
    yield from found.values()
    head = found.get("lm_head.weight") or found.get("model.embed_tokens.weight")
    screen = screen_of(head) if head is not None else None
    if screen is not None:
        yield screen


def _of_pickle(path: Path) -> Iterable[Stored]:
    """Nothing but running it says what is in such a file: all its bytes are one tensor, to which no scheme applies."""
    yield Stored(path.name, (path.stat().st_size,))


def _assembled(tensors: Iterable[Stored], method: str) -> Iterable[Stored]:
    """The linear layers of AWQ and GPTQ, which `four_bit` makes of three or four tensors each."""
    known = {tensor.name for tensor in tensors}
    for tensor in tensors:
        parts = _PARTS.fullmatch(tensor.name)
        if parts is None or f"{parts[1]}.qweight" not in known:
            yield tensor
        elif parts[2] == "qweight":
            rows, columns = tensor.shape
            shape = (columns, _IN_A_WORD * rows) if method == "gptq" else (_IN_A_WORD * columns, rows)
            yield Stored(f"{parts[1]}.weight", shape, layout=Layout.Q4_32)
