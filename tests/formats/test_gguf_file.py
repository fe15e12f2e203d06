"""GGUF headers are data from strangers."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
from factories import gguf

from inferloom.errors import InvalidFormat
from inferloom.formats.gguf_file import GgufFile


def header(tensors: int, pairs: int, rest: bytes = b"", *, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs) + rest


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def test_metadata_and_tensors_are_those_that_were_written(tmp_path: Path) -> None:
    vocabulary = gguf.byte_vocabulary()
    tensors = gguf.random_tensors(len(vocabulary.tokens))
    path = gguf.write(
        tmp_path / "m.gguf", vocabulary=vocabulary, tensors=tensors, keys={"x.flag": True, "x.real": 0.5}
    )
    with GgufFile(path) as file:
        assert file.metadata["tokenizer.ggml.tokens"] == vocabulary.tokens
        assert file.metadata["tokenizer.ggml.token_type"] == vocabulary.kinds
        assert file.metadata["x.flag"] is True
        assert file.metadata["x.real"] == 0.5
        assert set(file.tensors) == set(tensors)
        for name, tensor in tensors.items():
            assert file.tensors[name].shape == tensor.shape
            assert bytes(file.bytes_of(file.tensors[name])) == tensor.tobytes()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "too short"),
        (b"GGUF" + b"\0" * 10, "too short"),
        (b"ggml" + b"\0" * 60, "does not start with the letters GGUF"),
        (header(0, 0, b"\0" * 40, version=1), "version 1"),
        (header(0, 0, b"\0" * 40, version=0x03000000), "big-endian"),
        (header(1 << 60, 0, b"\0" * 40), "damaged or cut short"),
        (header(0, 1 << 62, b"\0" * 40), "damaged or cut short"),
        (header(0, 1, text(b"k") + struct.pack("<IQ", 8, 1 << 40)), "damaged or cut short"),
        (header(0, 1, text(b"k") + struct.pack("<IIQ", 9, 4, 1 << 61) + b"\0" * 32), "damaged or cut short"),
        (header(0, 1, text(b"k") + struct.pack("<IIQ", 9, 8, 1 << 50) + b"\0" * 32), "damaged or cut short"),
        (header(0, 1, text(b"k") + struct.pack("<IIQ", 9, 9, 1) + b"\0" * 32), "unknown type 9"),
        (header(0, 1, text(b"k") + struct.pack("<I", 77) + b"\0" * 32), "unknown type 77"),
        (header(0, 1, struct.pack("<Q", 1 << 30) + b"k" * 40), "claims to be"),
        (header(0, 2, (text(b"k") + struct.pack("<IB", 0, 1)) * 2 + b"\0" * 32), "is there twice"),
        (header(1, 0, text(b"t") + struct.pack("<I", 1 << 30) + b"\0" * 40), "dimensions"),
        (header(1, 0, text(b"t") + struct.pack("<IQIQ", 1, 4, 999, 0) + b"\0" * 40), "unknown type 999"),
        (
            header(1, 0, text(b"t") + struct.pack("<IQIQ", 1, 1 << 62, 0, 0) + b"\0" * 40),
            "damaged or cut short",
        ),
        (
            header(1, 0, text(b"t") + struct.pack("<IQIQ", 1, 4, 0, 1 << 63) + b"\0" * 40),
            "damaged or cut short",
        ),
        (header(1, 0, text(b"t") + struct.pack("<IQIQ", 1, 5, 2, 0) + b"\0" * 40), "no whole blocks"),
        (
            header(0, 1, text(b"general.alignment") + struct.pack("<II", 4, 0) + b"\0" * 32),
            "not a power of two",
        ),
    ],
)
def test_damaged_headers_are_refused_without_a_large_allocation(
    content: bytes, says: str, tmp_path: Path
) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(InvalidFormat, match=says):
        GgufFile(path)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = gguf.write(tmp_path / "whole.gguf", vocabulary=gguf.byte_vocabulary(size=270)).read_bytes()
    chance = random.Random(1)
    path = tmp_path / "m.gguf"
    for length in [*range(0, 400, 7), *(chance.randrange(len(whole) - 64) for _ in range(100))]:
        path.write_bytes(whole[:length])
        with pytest.raises(InvalidFormat):
            GgufFile(path)


def test_a_header_with_flipped_bits_is_read_or_refused_and_never_anything_else(tmp_path: Path) -> None:
    whole = gguf.write(tmp_path / "whole.gguf", vocabulary=gguf.byte_vocabulary(size=270)).read_bytes()
    chance = random.Random(2)
    path = tmp_path / "m.gguf"
    refused = 0
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(chance.randrange(1, 4)):
            damaged[chance.randrange(12_000)] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        try:
            GgufFile(path).close()
        except InvalidFormat:
            refused += 1
    assert refused > 20
