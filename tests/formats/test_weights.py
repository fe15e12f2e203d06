"""Weights are views of mapped files, and nothing in a header is believed."""

from __future__ import annotations

import json
import os
import re
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from inferloom.errors import InvalidFormat, LoadFailed
from inferloom.formats.checkpoint import Checkpoint
from inferloom.formats.layouts import Layout, PackedTensor, dequantise
from inferloom.formats.weights import open_weights, unmap_pages


def checkpoint(*paths: Path, kind: Any = "safetensors") -> Checkpoint:
    names = tuple(str(path) for path in paths)
    return Checkpoint(source="x", name="x", folder=str(paths[0].parent), weights=names, format=kind)


def private_dirty(path: Path) -> tuple[int, int]:
    """(kB mapped, kB of it private and dirty) of the file `path` in this process."""
    inside, mapped, dirty = False, 0, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(str(path))
        elif inside and line.startswith("Size:"):
            mapped += int(line.split()[1])
        elif inside and line.startswith("Private_Dirty:"):
            dirty += int(line.split()[1])
    return mapped, dirty


def test_tensors_are_those_that_were_saved(tmp_path: Path) -> None:
    saved = {
        "half": torch.randn(3, 5).to(torch.bfloat16),
        "float": torch.randn(7),
        "f16": torch.randn(2, 2, 2).to(torch.float16),
        "ids": torch.arange(9),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "empty": torch.empty(0, 4),
        "scalar": torch.tensor(3.5),
    }
    save_file(saved, tmp_path / "model.safetensors")
    weights = open_weights(checkpoint(tmp_path / "model.safetensors"))
    assert set(weights) == set(saved)
    for name, tensor in saved.items():
        assert weights[name].dtype == tensor.dtype
        assert weights[name].shape == tensor.shape
        assert torch.equal(weights[name], tensor)
    assert weights.nbytes == sum(tensor.numel() * tensor.element_size() for tensor in saved.values())


def test_nothing_is_copied_even_after_every_byte_was_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(1000, 5000), "b": torch.ones(3000, 1000, dtype=torch.bfloat16)}, path)
    with open(path, "rb") as file:
        os.fsync(file.fileno())  # pages on their way to the disk would count as dirty
    weights = open_weights(checkpoint(path))
    assert sum(float(tensor.float().sum()) for tensor in weights.values()) == 8_000_000
    mapped, dirty = private_dirty(path)
    assert mapped >= 25_000
    assert dirty == 0


def test_shards_are_one_mapping_and_a_name_is_in_one_of_them(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "1.safetensors")
    save_file({"b": torch.zeros(2)}, tmp_path / "2.safetensors")
    weights = open_weights(checkpoint(tmp_path / "1.safetensors", tmp_path / "2.safetensors"))
    assert sorted(weights) == ["a", "b"]
    save_file({"a": torch.zeros(2)}, tmp_path / "3.safetensors")
    with pytest.raises(InvalidFormat, match="the tensor 'a' is in two files"):
        open_weights(checkpoint(tmp_path / "1.safetensors", tmp_path / "3.safetensors"))


def test_the_files_are_held_open_and_tell_when_they_changed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(100)}, path)
    weights = open_weights(checkpoint(path))
    (file,) = weights.files
    assert (file.path, file.size, file.mtime_ns) == (str(path), path.stat().st_size, path.stat().st_mtime_ns)
    assert os.fstat(file.fd).st_ino == path.stat().st_ino
    assert file.unchanged
    with open(path, "r+b") as writer:
        writer.truncate(file.size - 4)
    assert not file.unchanged
    save_file({"a": torch.ones(100)}, tmp_path / "new")
    (tmp_path / "new").rename(path)
    assert not file.unchanged
    path.unlink()
    assert not file.unchanged
    weights.close()
    assert weights.files == []
    with pytest.raises(OSError):
        os.fstat(file.fd)


def write(path: Path, header: object, data: bytes = b"\0" * 64, *, length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def entry(dtype: str = "F32", shape: object = (16,), offsets: object = (0, 64)) -> dict[str, object]:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


def test_an_unaligned_tensor_is_read_all_the_same(tmp_path: Path) -> None:
    header = json.dumps(entry(shape=(2,), offsets=(0, 8))).encode()
    header += b" " * ((1 - len(header)) % 4)  # the data begin at 1 modulo 4
    path = write(tmp_path / "m.safetensors", header, struct.pack("<ff", 1.5, -2.5))
    assert open_weights(checkpoint(path))["a"].tolist() == [1.5, -2.5]


@pytest.mark.parametrize(
    ("header", "length", "says"),
    [
        (b"", None, "cannot be read"),
        (b"[]", None, "cannot be read"),
        (b"\xff\xfe", None, "cannot be read"),
        (b"[" * 5000, None, "cannot be read"),
        (entry(), 1 << 62, "its header claims"),
        (entry(), 1000, "its header claims"),
        (entry(offsets=(0, 60)), None, "has 60 bytes for shape"),
        (entry(offsets=(-64, 0)), None, "is damaged"),
        (entry(shape=(1 << 62, 1 << 62)), None, "is damaged"),
        (entry(shape=(-16,)), None, "is damaged"),
        (entry(shape=(32,), offsets=(0, 128)), None, "ends at byte"),
        (entry(shape=(16,), offsets=(1 << 60, (1 << 60) + 64)), None, "ends at byte"),
        (entry(dtype="Q4"), None, "unknown dtype 'Q4'"),
        (entry(shape="x"), None, "cannot be read"),
    ],
)
def test_a_header_that_lies_is_refused(header: object, length: int | None, says: str, tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", header, length=length)
    with pytest.raises(InvalidFormat, match=says):
        open_weights(checkpoint(path))


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = tmp_path / "whole.safetensors"
    save_file({"a": torch.ones(64), "b": torch.ones(3, 3)}, whole)
    content = whole.read_bytes()
    path = tmp_path / "m.safetensors"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(InvalidFormat):
            open_weights(checkpoint(path))


def test_pickled_weights_are_tensors_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.ones(3)}, path)
    assert open_weights(checkpoint(path, kind="pytorch"))["a"].tolist() == [1, 1, 1]
    torch.save({"a": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    assert open_weights(checkpoint(path, kind="pytorch"))["a"].tolist() == [1, 1, 1]
    torch.save([torch.ones(3)], path)
    with pytest.raises(InvalidFormat, match="not a table of tensors"):
        open_weights(checkpoint(path, kind="pytorch"))


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    for zipped in (True, False):
        torch.save({"a": Bomb(tmp_path / "ran")}, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(InvalidFormat, match="holds more than tensors, which could be code"):
            open_weights(checkpoint(path, kind="pytorch"))
    path.write_bytes(b"garbage")
    with pytest.raises(InvalidFormat):
        open_weights(checkpoint(path, kind="pytorch"))
    assert not (tmp_path / "ran").exists()


def test_a_file_that_is_gone_is_named_and_nothing_stays_open(tmp_path: Path) -> None:
    path = tmp_path / "1.safetensors"
    save_file({"a": torch.ones(2)}, path)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with pytest.raises(LoadFailed, match=r"2\.safetensors cannot be opened: No such file"):
        open_weights(checkpoint(path, tmp_path / "2.safetensors"))
    assert len(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208


# --- packed matrices --------------------------------------------------------------------------------------------------


def packed_file(
    path: Path, *, size: int = 320, offset: int = 0, dtype: str = "U8", **described: object
) -> Path:
    meaning = {"a": {"layout": "Q4_32", "shape": [16, 32], **described}}
    header = {
        "__metadata__": {"inferloom.layouts": json.dumps(meaning)},
        "a": {"dtype": dtype, "shape": [size], "data_offsets": [offset, offset + size]},
    }
    raw = json.dumps(header).encode()
    raw += b" " * (-(len(raw) + 8) % 64)
    return write(path, raw, b"\0" * (size + offset))


def test_a_packed_matrix_is_a_view_of_the_mapping(tmp_path: Path) -> None:
    path = packed_file(tmp_path / "m.safetensors")
    tensor = open_weights(checkpoint(path))["a"]
    assert isinstance(tensor, PackedTensor)
    assert (tensor.layout, tensor.shape, tensor.nbytes, tensor.numel()) == (Layout.Q4_32, (16, 32), 320, 512)
    assert tensor.data.data_ptr() % 64 == 0
    assert not dequantise(tensor).any()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"layout": "Q3_7"}, "has the unknown layout 'Q3_7'"),
        ({"layout": "BF16"}, "has the unknown layout 'BF16'"),
        ({"shape": [17, 32]}, "has 320 bytes of U8 for a Q4_32 matrix of shape"),
        ({"shape": [0, 32]}, "has 320 bytes of U8"),
        ({"shape": [-16, -32]}, "has 320 bytes of U8"),
        ({"shape": [16, 32, 1]}, "cannot be read"),
        ({"shape": "16"}, "cannot be read"),
        ({"more": 1}, "cannot be read"),
        ({"dtype": "I8"}, "has 320 bytes of I8"),
        ({"offset": 32}, "does not begin at a multiple of 64 bytes"),
    ],
)
def test_a_packed_matrix_that_does_not_fit_its_description_is_refused(
    changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    path = packed_file(tmp_path / "m.safetensors", **changes)
    with pytest.raises(InvalidFormat, match=says):
        open_weights(checkpoint(path))


@pytest.mark.parametrize(
    ("text", "says"),
    [("[", "cannot be read"), ('{"b": {"layout": "Q4_32", "shape": [16, 32]}}', "does not hold")],
)
def test_a_description_that_means_nothing_is_refused(text: str, says: str, tmp_path: Path) -> None:
    header = {"__metadata__": {"inferloom.layouts": text}, **entry()}
    with pytest.raises(InvalidFormat, match=says):
        open_weights(checkpoint(write(tmp_path / "m.safetensors", header)))


def test_weights_that_were_unmapped_are_read_again(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.arange(100_000)}, path)
    weights = open_weights(checkpoint(path))
    tensor = weights["a"]
    assert isinstance(tensor, torch.Tensor) and int(tensor.sum()) == 4999950000
    unmap_pages()
    rest = Path("/proc/self/smaps").read_text().split(str(path))[1]
    assert re.findall(r"Rss: +(\d+)", rest)[0] == "0"
    assert int(tensor.sum()) == 4999950000
