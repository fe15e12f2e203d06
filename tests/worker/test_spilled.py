from __future__ import annotations

import fcntl
from functools import partial
from pathlib import Path

import pytest

from inferloom.worker.spilled import Foreign, KeptPages, file_bytes, fitting, read, write

PAGES = [(bytes([number]) * 32, bytes([number]) * 96) for number in range(5)]


def written(path: Path, *, owner: str = "me") -> Path:
    pages = [(key, partial(bytes, page)) for key, page in PAGES]
    pages.insert(2, (b"gone" * 8, nothing))  # type: ignore[arg-type]
    size = write(path, owner=owner, executor="native", page_bytes=96, pages=pages)
    assert size == path.stat().st_size
    return path


def nothing() -> None:
    """A page that its own file has lost."""


def test_pages_come_back_as_they_were(tmp_path: Path) -> None:
    path = written(tmp_path / "a.kv")
    found = read(path, owner="me", executor="native", page_bytes=96)
    assert [(key, bytes(content() or b"")) for key, content in found.pages()] == PAGES
    assert found.keys == {key for key, _ in PAGES}
    assert not found.damaged
    assert path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["a.kv"]


@pytest.mark.parametrize(
    "change", [{"owner": "you"}, {"executor": "reference"}, {"page_bytes": 95}, {"page_bytes": 192}]
)
def test_pages_of_another_model_or_computed_otherwise_are_refused(
    change: dict[str, object], tmp_path: Path
) -> None:
    path = written(tmp_path / "a.kv")
    asked = {"owner": "me", "executor": "native", "page_bytes": 96, **change}
    with pytest.raises(Foreign, match="another model"):
        read(path, **asked)  # type: ignore[arg-type]


def test_any_damaged_byte_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = written(tmp_path / "a.kv").read_bytes()
    damaged = tmp_path / "b.kv"
    pages = range(8, 8 + 5 * 96)
    for place in range(0, len(whole), 7):
        damaged.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        if place not in pages:
            with pytest.raises(Foreign):
                read(damaged, owner="me", executor="native", page_bytes=96)
            continue
        caplog.clear()
        found = read(damaged, owner="me", executor="native", page_bytes=96)
        contents = [content() for _, content in found.pages()]
        lost = [number for number, content in enumerate(contents) if content is None]
        assert lost == [(place - 8) // 96]
        assert found.damaged
        assert "b.kv is discarded: it is damaged" in caplog.text
    for length in range(0, len(whole), 11):
        damaged.write_bytes(whole[:length])
        with pytest.raises(Foreign):
            read(damaged, owner="me", executor="native", page_bytes=96)
    damaged.write_bytes(whole + b"\0")
    with pytest.raises(Foreign):
        read(damaged, owner="me", executor="native", page_bytes=96)


def page(number: int) -> tuple[bytes, partial[bytes]]:
    return bytes([number]) * 32, partial(bytes, bytes([number]) * 96)


def opened(path: Path) -> KeptPages:
    return read(path, owner="me", executor="native", page_bytes=96)


def contents(path: Path) -> dict[bytes, bytes]:
    return {key: bytes(content() or b"") for key, content in opened(path).pages()}


@pytest.mark.parametrize(
    "wanted", [[0, 1, 2, 3, 4], [7, 0, 1, 2, 3, 4], [9, 4, 0, 3, 8], [1, 2, 3, 4], [*range(5, 30), 2]]
)
def test_a_file_takes_in_what_it_lacks(wanted: list[int], tmp_path: Path) -> None:
    path = written(tmp_path / "a.kv")
    before, inode = opened(path), path.stat().st_ino
    size = before.update([page(number) for number in wanted], max_bytes=1 << 20)
    assert size == path.stat().st_size <= file_bytes(max(len(wanted), 5), 96)
    assert path.stat().st_ino == inode
    assert list(contents(path)) == [bytes([number]) * 32 for number in wanted]
    assert all(content == key * 3 for key, content in contents(path).items())
    # Who read the file before finds the pages that stayed, and no others in their places.
    found = {key: content() for key, content in before.pages()}
    assert all(content is None or bytes(content) == key * 3 for key, content in found.items())
    assert all(found[bytes([number]) * 32] is not None for number in wanted if number < 5)


def test_a_file_takes_in_only_what_can_be_read(tmp_path: Path) -> None:
    path = written(tmp_path / "a.kv")
    lost = (b"gone" * 8, nothing)
    assert opened(path).update([page(6), lost, *map(page, range(5))], max_bytes=1 << 20)  # type: ignore[list-item]
    assert [key[0] for key in contents(path)] == [6, 0, 1, 2, 3, 4]


@pytest.mark.parametrize("reason", ["replaced", "updated", "gone", "damaged", "useless", "full", "locked"])
def test_a_file_that_is_better_written_again_is_left_as_it_is(reason: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a.kv")
    kept, wanted, most = opened(path), [page(number) for number in range(6)], 1 << 20
    if reason == "replaced":
        written(path)
    elif reason == "updated":
        assert opened(path).update([page(8), *map(page, range(5))], max_bytes=most)
    elif reason == "gone":
        path.unlink()
    elif reason == "damaged":
        with path.open("r+b") as file:
            file.seek(20)
            file.write(b"?")
        assert next(content() for _, content in kept.pages()) is None
    elif reason == "useless":
        wanted = [page(0), page(9)]
    elif reason == "full":
        most = file_bytes(6, 96) - 1
    before = path.read_bytes() if path.exists() else None
    with open(path if reason == "locked" else "/dev/null") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert kept.update(wanted, max_bytes=most) is None
    assert (path.read_bytes() if path.exists() else None) == before


def test_an_update_that_fails_leaves_the_pages_that_stay(tmp_path: Path) -> None:
    path = written(tmp_path / "a.kv")
    before = path.read_bytes()

    def breaking() -> bytes:
        raise OSError("no space left")

    wanted = [*map(page, range(5)), page(6), (b"y" * 32, breaking)]
    with pytest.raises(OSError, match="no space"):
        opened(path).update(wanted, max_bytes=1 << 20)
    assert path.read_bytes() == before


def test_a_file_that_cannot_be_finished_leaves_the_one_before(tmp_path: Path) -> None:
    path = written(tmp_path / "a.kv")
    before = path.read_bytes()

    def breaking() -> bytes:
        raise OSError("no space left")

    pages = [(b"x" * 32, partial(bytes, 96)), (b"y" * 32, breaking)]
    with pytest.raises(OSError, match="no space"):
        write(path, owner="me", executor="native", page_bytes=96, pages=pages)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.kv"]


def test_as_many_pages_as_the_bytes_allow(tmp_path: Path) -> None:
    size = written(tmp_path / "a.kv").stat().st_size
    assert fitting(size, 96) <= 5
    assert fitting(4096 + 5 * (96 + 48), 96) == 5
    assert fitting(100, 96) == fitting(1 << 30, 0) == 0
