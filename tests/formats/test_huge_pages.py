"""Files in small pages of the page cache are read again into huge ones, where the file system has them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from inferloom.formats.huge_pages import read_into_huge_pages, small_extents

SIZE = (16 << 20) + 4096


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A file that was written page by page and is on the disk."""
    path = tmp_path / "weights"
    with open(path, "wb") as file:
        for page in range(SIZE // 4096):
            file.write(page.to_bytes(4, "little") * 1024)
            file.flush()
        os.fsync(file.fileno())
    return path


def test_either_every_extent_becomes_huge_or_nothing_is_dropped(written: Path) -> None:
    content = written.read_bytes()
    with open(written, "rb") as file:
        before = small_extents(file.fileno(), SIZE)
        moved = read_into_huge_pages(file.fileno(), SIZE, least=0)
        after = small_extents(file.fileno(), SIZE)
    assert after == ([] if moved else before)
    assert written.read_bytes() == content


def test_a_file_in_huge_pages_is_left_alone(written: Path) -> None:
    with open(written, "rb") as file:
        read_into_huge_pages(file.fileno(), SIZE, least=0)
        assert not read_into_huge_pages(file.fileno(), SIZE, least=0)


def test_what_takes_too_long_for_one_load_is_gone_on_with_at_the_next(written: Path) -> None:
    content = written.read_bytes()
    with open(written, "ab") as file:  # more than one piece
        for _ in range(4):
            file.write(content)
            file.flush()
        os.fsync(file.fileno())
    size = written.stat().st_size
    everywhere = range(0, size // (2 << 20) * (2 << 20), 2 << 20)
    with open(written, "rb") as file:
        left = len(small_extents(file.fileno(), size, everywhere))
        while read_into_huge_pages(file.fileno(), size, least=0, patience=0.0):
            before, left = left, len(small_extents(file.fileno(), size, everywhere))
            assert left < before
    assert written.read_bytes() == content * 5


def test_a_small_file_is_left_alone(written: Path) -> None:
    with open(written, "rb") as file:
        assert not read_into_huge_pages(file.fileno(), SIZE)


def test_a_file_shorter_than_an_extent_has_nothing_to_tell(tmp_path: Path) -> None:
    path = tmp_path / "short"
    path.write_bytes(b"x" * 5000)
    with open(path, "rb") as file:
        assert not read_into_huge_pages(file.fileno(), 5000, least=0)
