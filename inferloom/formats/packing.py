"""Writing a checkpoint's weights as a packed file, a few megabytes at a time, by all processors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inferloom.errors import InvalidFormat
from inferloom.formats import four_bit, packed_file, quantiser, tensor_sources
from inferloom.formats.checkpoint import Checkpoint
from inferloom.formats.layout import ROWS, Layout, planes
from inferloom.formats.packed_file import Stored
from inferloom.formats.packing_plan import Scheme, left_out, target
from inferloom.formats.tensor_sources import TensorSource
from inferloom.formats.threads import each

_CHUNK = 1 << 17  # elements packed at a time: intermediate results stay in the cache


def write(
    checkpoint: Checkpoint,
    config: Mapping[str, Any],
    scheme: Scheme,
    path: Path,
    *,
    room: Callable[[int], None],
    progress: Callable[[float], None],
) -> None:
    """Pack `checkpoint`, whose config.json is `config`, into the file `path`. `room` is told the bytes it will take before
    anything is written, `progress` the share that is done.

    Raises `InvalidFormat`, `Unsupported`, and what `room` raises.
    """
    sources = _sources(checkpoint, config, scheme)
    targets = {
        name: target(name, tensor.shape, tensor.dtype, tensor.layout, scheme)
        for name, tensor in sources.items()
    }
    ordered = packed_file.in_order(_stored(tensor, targets[name]) for name, tensor in sources.items())
    total = sum(tensor.size for tensor in ordered) or 1
    room(total)
    done = 0
    with open(path, "wb") as file:
        writer = packed_file.open_writer(file, ordered, {"format": "pt", "inferloom.scheme": scheme.name})
        for tensor in ordered:
            for piece in _pieces(sources[tensor.name], targets[tensor.name]):
                writer.write([piece])
                done += len(piece)
                progress(min(1.0, done / total))
        writer.finish()


def _sources(checkpoint: Checkpoint, config: Mapping[str, Any], scheme: Scheme) -> Mapping[str, TensorSource]:
    tensors = tensor_sources.read(checkpoint)
    found: Mapping[str, TensorSource] = tensors
    if scheme.method:
        found = four_bit.assembled(tensors, config["quantization_config"])
    tied = bool(config.get("tie_word_embeddings"))
    return {name: tensor for name, tensor in found.items() if not left_out(name, scheme, tied=tied)}


def _stored(tensor: TensorSource, layout: Layout | None) -> Stored:
    if layout is None:
        layout = tensor.layout
    return Stored(tensor.name, tensor.shape, tensor.dtype if layout is None else "U8", layout)


def _pieces(tensor: TensorSource, layout: Layout | None) -> Iterator[memoryview]:
    rows = tensor.shape[0] if tensor.shape else 1
    elements = int(np.prod(tensor.shape, dtype=np.int64))
    step = -(-max(1, _CHUNK * rows // max(1, elements)) // ROWS) * ROWS
    stored = layout if layout is not None else tensor.layout

    def piece(start: int, plane: slice) -> memoryview:
        stop = min(rows, start + step)
        if layout is None:
            return _bytes(tensor.content(start, stop)[:, plane])
        values = tensor.values(start, stop)
        missing = -len(values) % ROWS
        if missing:
            values = np.pad(values, ((0, missing), (0, 0)))
        try:
            return _bytes(quantiser.pack(values, layout)[:, plane])
        except InvalidFormat as error:
            raise InvalidFormat(f"{tensor.name} cannot be packed: {error.message}.") from None

    if elements:
        # What lies in several planes is packed once for each of them: no plane waits in memory for the one before.
        for plane in planes(tensor.shape[1], stored) if stored is not None else [slice(None)]:
            yield from each(partial(piece, plane=plane), range(0, rows, step))


def _bytes(part: NDArray[np.generic]) -> memoryview:
    return np.ascontiguousarray(part).data.cast("B")
