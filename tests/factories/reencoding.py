"""A GGUF file once more, with its matrices in another encoding."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.constants import GGMLQuantizationType as Kind
from gguf.constants import GGUFValueType as Value

_FILE_TYPES = {Kind.F16: 1, Kind.Q8_0: 7}  # general.file_type, as llama.cpp numbers them


def reencode(source: Path, target: Path, kind: Kind) -> Path:
    """Write `source` to `target`: its matrices dequantised and encoded as `kind`, vectors and metadata as they are."""
    reader = _reader(source)
    writer = gguf.GGUFWriter(target, _text(reader, "general.architecture"))
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue  # the writer's own
        value: Any = _FILE_TYPES[kind] if field.name == "general.file_type" else field.contents()
        deeper = field.types[-1] if field.types[0] is Value.ARRAY else None
        writer.add_key_value(field.name, value, field.types[0], deeper)
    for tensor in reader.tensors:
        floats = np.ascontiguousarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        if floats.ndim > 1:
            writer.add_tensor(tensor.name, gguf.quants.quantize(floats, kind), raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, floats.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@functools.cache
def _reader(source: Path) -> gguf.GGUFReader:
    return gguf.GGUFReader(source)  # seconds for a large vocabulary


def _text(reader: gguf.GGUFReader, key: str) -> str:
    field = reader.get_field(key)
    assert field is not None, key
    return str(field.contents())
