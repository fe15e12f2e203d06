from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from inferloom.worker import kv_store
from inferloom.worker.kv_store import KvStore

MIB = 1 << 20


@pytest.fixture
def shelves(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "ram", tmp_path / "disk"


def put(store: KvStore, key: str, size: int, *, age: float = 0.0) -> Path | None:
    """Keep a file of that many bytes, last used `age` seconds ago."""
    with store.keep(key, wanted=size) as kept:
        if kept is None:
            return None
        kept.path.write_bytes(b"x" * min(size, kept.max_bytes))
        os.utime(kept.path, (time.time() - age,) * 2)
        return kept.path


def test_what_was_kept_is_found_again(shelves: tuple[Path, Path]) -> None:
    store = KvStore(memory=8 * MIB, disk=8 * MIB, shelves=shelves)
    assert store.find("a") is None
    path = put(store, "a", 2 * MIB)
    assert path is not None and path.parent == shelves[0]
    assert store.find("a") == path
    assert store.memory_bytes == 2 * MIB
    assert KvStore(memory=8 * MIB, disk=8 * MIB, shelves=shelves).find("a") == path  # a later process


def test_memory_comes_first_and_the_longest_unused_moves_to_the_disk_and_then_goes(
    shelves: tuple[Path, Path],
) -> None:
    store = KvStore(memory=5 * MIB, disk=4 * MIB, shelves=shelves)
    for place, key in enumerate("abc"):
        put(store, key, 2 * MIB, age=100 - place)
    found = {key: store.find(key) for key in "abc"}
    assert {key: path.parent for key, path in found.items() if path} == {
        "a": shelves[1],
        "b": shelves[0],
        "c": shelves[0],
    }
    time.sleep(0.01)
    store.find("b")  # used again: c is the longest unused in memory
    os.utime(shelves[0] / "c.kv", (1, 1))
    put(store, "d", 2 * MIB)
    put(store, "e", 2 * MIB)
    assert sum(file.stat().st_size for file in shelves[0].iterdir()) <= 5 * MIB
    assert sum(file.stat().st_size for file in shelves[1].iterdir()) <= 4 * MIB
    assert store.find("e") is not None and store.find("d") is not None


def test_a_limit_is_never_passed_and_a_larger_wish_is_cut(shelves: tuple[Path, Path]) -> None:
    store = KvStore(memory=3 * MIB, disk=0, shelves=shelves)
    with store.keep("a", wanted=100 * MIB) as kept:
        assert kept is not None and kept.max_bytes == 3 * MIB


def test_without_limits_nothing_is_kept(shelves: tuple[Path, Path]) -> None:
    store = KvStore(memory=0, disk=0, shelves=shelves)
    assert put(store, "a", 10) is None
    assert not shelves[0].exists() and not shelves[1].exists()


def test_keeping_again_replaces_what_was_kept_wherever_it_lay(shelves: tuple[Path, Path]) -> None:
    put(KvStore(memory=0, disk=8 * MIB, shelves=shelves), "a", 2 * MIB)
    store = KvStore(memory=8 * MIB, disk=8 * MIB, shelves=shelves)
    path = put(store, "a", 3 * MIB)
    assert path == store.find("a") == shelves[0] / "a.kv"
    assert list(shelves[1].iterdir()) == []


def test_a_folder_that_others_may_write_to_is_not_used(
    shelves: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    shelves[0].mkdir()
    shelves[0].chmod(0o777)
    store = KvStore(memory=8 * MIB, disk=8 * MIB, shelves=shelves)
    path = put(store, "a", 2 * MIB)
    assert path is not None and path.parent == shelves[1]
    assert "others may read or write there" in caplog.text


def test_a_write_that_fails_keeps_what_was_there(shelves: tuple[Path, Path]) -> None:
    store = KvStore(memory=8 * MIB, disk=8 * MIB, shelves=shelves)
    path = put(store, "a", 2 * MIB)
    with pytest.raises(RuntimeError), store.keep("a", wanted=2 * MIB):
        raise RuntimeError
    assert store.find("a") == path


def test_memory_that_was_kept_for_a_cache_that_is_gone_is_freed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_store, "_SHARED_MEMORY", tmp_path / "shm")
    (tmp_path / "shm").mkdir()
    for name in ("gone", "there"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv("INFERLOOM_CACHE", str(tmp_path / name))
        assert put(KvStore(memory=8 * MIB, disk=0), "a", 2 * MIB) is not None
    (tmp_path / "gone").rmdir()
    assert KvStore(memory=8 * MIB, disk=0).find("a") is not None
    assert len(list((tmp_path / "shm").iterdir())) == 1
