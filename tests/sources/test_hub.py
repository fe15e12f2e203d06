"""Hub repositories, against a local stand-in that speaks the hub's protocol."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from factories.hub import Hub, Repository, running

from inferloom.formats.prepare import locate


def tensors(value: float = 0.0) -> bytes:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(header)) + header + struct.pack("<f", value)


SMALL = {"config.json": b"{}", "tokenizer.json": b'{"t": 1}', "tokenizer_config.json": b'{"c": 1}'}
PLAIN = {
    **SMALL,
    "model.safetensors": tensors(),
    "pytorch_model.bin": b"pickled",
    "README.md": b"read me",
    "onnx/model.onnx": b"onnx",
    "1_Pooling/config.json": b'{"p": 1}',
}
INDEX = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
SHARDED = {
    **SMALL,
    "model.safetensors.index.json": json.dumps(INDEX).encode(),
    "model-00001-of-00002.safetensors": tensors(1.0),
    "model-00002-of-00002.safetensors": tensors(2.0),
}


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    repositories = {
        "o/plain": Repository({"main": PLAIN, "v2": {**PLAIN, "config.json": b'{"v": 2}'}}),
        "o/sharded": Repository({"main": SHARDED}),
        "o/holes": Repository({"main": {k: v for k, v in SHARDED.items() if "00002-of" not in k}}),
        "o/gated": Repository({"main": PLAIN}, gated=True),
        "o/private": Repository({"main": PLAIN}, private=True),
        "o/broken": Repository({"main": PLAIN}, broken=502),
        "o/many": Repository(
            {"main": {"a-Q4.gguf": b"GGUF", "b/a-Q8.gguf": b"GGUF", "mmproj-a.gguf": b"GGUF"}}
        ),
        "o/empty": Repository({"main": {"README.md": b"nothing"}}),
        "o/untold": Repository({"main": {"config.json": b"{}", "model.safetensors": tensors()}}),
        "o/words": Repository({"main": SMALL}),
        "o/old": Repository({"main": {**SMALL, "pytorch_model.bin": b"pickled"}}),
    }
    with running(repositories) as server:
        yield server


def sentence(answer: dict[str, object]) -> str:
    error = answer["error"]
    assert isinstance(error, dict)
    return f"{error['code']}: {error['message']}"


def test_only_what_is_needed_is_downloaded_and_the_next_time_nothing(hub: Hub, tmp_path: Path) -> None:
    hub.downloads.clear()
    checkpoint = hub.prepare("o/plain", tmp_path)["checkpoint"]
    wanted = {*SMALL, "model.safetensors", "1_Pooling/config.json"}
    assert set(hub.downloads) == wanted
    assert checkpoint["name"] == "o/plain"
    assert checkpoint["format"] == "safetensors"
    assert Path(checkpoint["weights"][0]).read_bytes() == tensors()
    hub.downloads.clear()
    again = hub.prepare("o/plain", tmp_path, HF_HUB_OFFLINE="1")["checkpoint"]
    assert again == checkpoint
    assert hub.downloads == []


def test_a_revision_is_a_folder_of_its_own(hub: Hub, tmp_path: Path) -> None:
    folder = Path(hub.prepare("o/plain@v2", tmp_path)["checkpoint"]["folder"])
    assert json.loads((folder / "config.json").read_text()) == {"v": 2}
    assert Path(hub.prepare("o/plain", tmp_path)["checkpoint"]["folder"]) != folder


def test_shards_come_as_the_index_says(hub: Hub, tmp_path: Path) -> None:
    checkpoint = hub.prepare("o/sharded", tmp_path)["checkpoint"]
    assert [Path(path).name for path in checkpoint["weights"]] == sorted(INDEX["weight_map"].values())
    answer = sentence(hub.prepare("o/holes", tmp_path))
    assert "names 'model-00002-of-00002.safetensors', which the repository does not have" in answer


def test_pickled_weights_are_taken_only_where_there_are_no_others(hub: Hub, tmp_path: Path) -> None:
    checkpoint = hub.prepare("o/old", tmp_path)["checkpoint"]
    assert checkpoint["format"] == "pytorch"


def test_a_gated_repository_needs_the_licence_and_a_token(hub: Hub, tmp_path: Path) -> None:
    refusal = sentence(hub.prepare("o/gated", tmp_path))
    assert refusal.startswith("source_error: o/gated is gated: accept its licence at")
    assert "HF_TOKEN" in refusal
    assert "checkpoint" in hub.prepare("o/gated", tmp_path, HF_TOKEN=hub.token)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("o/missing", "source_not_found: the hub has no repository 'o/missing' that you may see"),
        ("o/private", "source_not_found: the hub has no repository 'o/private' that you may see"),
        ("o/plain@v9", "source_not_found: o/plain has no revision 'v9'; name a branch, a tag or a commit."),
        ("o/broken", "source_error: the hub answered 502 for o/broken; try again later."),
        (
            "o/many",
            "o/many holds several GGUF files; name the one you want:\n  o/many#a-Q4.gguf\n  o/many#b/a-Q8.gguf",
        ),
        ("o/many#c.gguf", "source_not_found: o/many has no file 'c.gguf'; it has:\n  o/many#a-Q4.gguf"),
        ("o/plain#model.safetensors", "'model.safetensors' is no GGUF file, and only those are named with #"),
        ("o/empty", "invalid_format: invalid format: o/empty holds no weights"),
        ("o/untold", "o/untold has no tokenizer.json; name a checkpoint that has one with `tok_model_id`"),
    ],
)
def test_every_refusal_has_its_own_sentence(hub: Hub, tmp_path: Path, source: str, says: str) -> None:
    assert says in sentence(hub.prepare(source, tmp_path))


def test_a_tokenizer_may_come_from_another_repository(hub: Hub, tmp_path: Path) -> None:
    hub.downloads.clear()
    checkpoint = hub.prepare("o/untold", tmp_path, "--tokenizer", "o/words")["checkpoint"]
    assert (Path(checkpoint["tokenizer_folder"]) / "tokenizer.json").read_bytes() == SMALL["tokenizer.json"]
    assert set(hub.downloads) == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_offline_is_said_with_the_place_that_was_searched(hub: Hub, tmp_path: Path) -> None:
    answer = sentence(hub.prepare("o/plain", tmp_path, HF_HUB_OFFLINE="1"))
    assert (
        f"HF_HUB_OFFLINE is set, and o/plain is not complete in the hub's cache {tmp_path}/hf/hub" in answer
    )


def test_a_hub_that_cannot_be_reached_is_a_network_error(hub: Hub, tmp_path: Path) -> None:
    answer = sentence(hub.prepare("o/plain", tmp_path, HF_ENDPOINT="http://127.0.0.1:9"))
    assert "no network: the hub at http://127.0.0.1:9 could not be reached for o/plain" in answer


def test_a_snapshot_with_a_missing_file_counts_as_not_there(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = hub.prepare("o/sharded", tmp_path)["checkpoint"]
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("INFERLOOM_CACHE", str(tmp_path / "cache"))
    assert locate("o/sharded") is not None
    shard = Path(checkpoint["weights"][1])
    target = shard.readlink()
    shard.unlink()
    assert locate("o/sharded") is None
    monkeypatch.setenv("INFERLOOM_CACHE", str(tmp_path / "another"))  # nothing was noted there
    assert locate("o/sharded") is None
    shard.symlink_to(target)
    assert locate("o/sharded") is not None
    Path(checkpoint["folder"], "tokenizer_config.json").unlink()
    assert locate("o/sharded") is None


def test_a_small_disk_is_told_before_the_download(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from inferloom.errors import SourceError
    from inferloom.sources import hub as room
    from inferloom.sources.reference import HubRef

    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    with pytest.raises(
        SourceError, match=r"the disk is full: o/plain needs 2 MB, 1 MB are free under .* HF_HOME"
    ):
        room._check_room(HubRef("o/plain"), 2_000_000)
