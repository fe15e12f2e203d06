"""The writer: what arrives in pieces of any size is written in blocks, byte by byte what was given."""

from __future__ import annotations

import io
import random
from pathlib import Path

import pytest

from inferloom.formats import safetensors_file
from inferloom.formats.safetensors_file import SafetensorsWriter, read_header


class Recorder(io.FileIO):
    """A file that remembers where each write began and how long it was."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "wb")
        self.writes: list[tuple[int, int]] = []

    def write(self, data: object) -> int:
        self.writes.append((self.tell(), len(data)))  # type: ignore[arg-type]
        return super().write(data)  # type: ignore[arg-type]


@pytest.mark.parametrize("longest", [1, 7, 64, 1000])
def test_pieces_of_any_size_are_written_in_whole_blocks(
    longest: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safetensors_file, "_BLOCK", 256)
    draw = random.Random(longest)
    first, second = draw.randbytes(1500), draw.randbytes(333)
    path = tmp_path / "model.safetensors"
    with Recorder(path) as file:
        writer = SafetensorsWriter(file, [("a", "U8", (1500,)), ("b", "I8", (333,))], {"what": "a test"})
        for data in (first, second):
            rest = memoryview(data)
            while rest:
                length = draw.randint(1, longest)
                writer.write([bytes(rest[:length])])
                rest = rest[length:]
        writer.finish()
        *whole, last = file.writes
    assert whole == [(256 * place, 256) for place in range(len(whole))]
    assert last == (256 * len(whole), path.stat().st_size - 256 * len(whole))
    header, written = read_header(path), path.read_bytes()
    for name, data in (("a", first), ("b", second)):
        tensor = header.tensors[name]
        assert written[tensor.offset : tensor.offset + tensor.size] == data
