"""Float checkpoints are packed once for each content and scheme, and mapped from then on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import gguf
from factories.checkpoints import make_checkpoint
from gguf.constants import GGMLQuantizationType as Kind
from safetensors.torch import load_file, save_file

from inferloom.errors import ConfigError, LoadFailed, Unsupported
from inferloom.formats import entries, packed_cache
from inferloom.formats.checkpoint import Checkpoint
from inferloom.formats.layouts import Layout, PackedTensor, dequantise
from inferloom.formats.prepare import locate, prepare
from inferloom.formats.weights import Weights, open_weights
from inferloom.types import LoadProgress


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INFERLOOM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_checkpoint(tmp_path / "m", "llama", dtype=torch.bfloat16, tie_word_embeddings=False)
    return tmp_path / "m"


def layouts(weights: Weights) -> dict[str, Any]:
    return {
        name: tensor.layout if isinstance(tensor, PackedTensor) else tensor.dtype
        for name, tensor in weights.items()
    }


def loosen(entry_folder: str, seconds: float = 1000) -> None:
    """As if the entry had last been used that long ago."""
    then = time.time() - seconds
    os.utime(Path(entry_folder) / "inferloom.json", (then, then))


@pytest.mark.parametrize(
    ("scheme", "linear", "outer"),
    [
        ("int8", Layout.Q8_ROW, Layout.Q8_HALVES),
        ("int4", Layout.Q4Z_32, Layout.Q8_HALVES),
        ("int4-all", Layout.Q4Z_32, Layout.Q4Z_32),
    ],
)
def test_linear_layers_are_packed_embeddings_stay_at_eight_bits_unless_asked_and_norms_floats(
    scheme: str, linear: Layout, outer: Layout, folder: Path
) -> None:
    assert locate(str(folder), quantization=scheme) is None
    seen: list[LoadProgress] = []
    checkpoint = prepare(str(folder), quantization=scheme, progress=seen.append)
    assert (checkpoint.quantization, checkpoint.folder) == (scheme, str(folder))
    assert list(dict.fromkeys(progress.stage for progress in seen)) == ["check", "pack"]
    assert seen[-1] == LoadProgress("pack", 1.0, f"m in {scheme}")
    weights = open_weights(checkpoint)
    original = load_file(folder / "model.safetensors")
    assert set(weights) == set(original)
    for name, layout in layouts(weights).items():
        if "norm" in name:
            assert layout == torch.bfloat16
            assert torch.equal(weights[name], original[name])
        else:
            wide = name in ("model.embed_tokens.weight", "lm_head.weight")
            assert layout is (outer if wide else linear), name
            values = dequantise(weights[name])
            off = (values - original[name].float()).norm() / original[name].float().norm()
            assert off < (0.08 if layout is Layout.Q4Z_32 else 0.01), name


def test_packing_happens_once_for_a_content_wherever_it_lies(folder: Path, tmp_path: Path) -> None:
    first = prepare(str(folder), quantization="int8")
    assert locate(str(folder), quantization="int8") == first
    assert prepare(str(folder)) == locate(str(folder)) != first
    shutil.copytree(folder, tmp_path / "copy")
    seen: list[LoadProgress] = []
    copy = prepare(str(tmp_path / "copy"), quantization="int8", progress=seen.append)
    assert copy.weights == first.weights
    assert {progress.stage for progress in seen} == {"check"}
    other = prepare(str(folder), quantization="int4")
    assert other.weights != first.weights
    assert locate(str(folder), quantization="int4-all") is None
    assert prepare(str(folder), quantization="int4-all").weights != other.weights
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] += 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert locate(str(folder), quantization="int8") is None
    assert prepare(str(folder), quantization="int8").weights != first.weights


def test_the_hubs_blobs_need_no_hashing(folder: Path, tmp_path: Path) -> None:
    blob = tmp_path / "hub" / "blobs" / ("ab" * 32)
    blob.parent.mkdir(parents=True)
    (folder / "model.safetensors").rename(blob)
    linked = tmp_path / "hub" / "snapshots" / "m"
    shutil.copytree(folder, linked)
    (linked / "model.safetensors").symlink_to(blob)
    from inferloom.formats import content

    assert content.known([linked / "model.safetensors"]) == "ab" * 32
    assert content.known([linked / "config.json"]) is None


def test_looking_up_imports_nothing_heavy(folder: Path) -> None:
    prepare(str(folder), quantization="int8")
    code = (
        "import sys, time; from inferloom.formats.prepare import locate\n"
        f"assert locate({str(folder)!r}, quantization='int8')\n"
        "assert not {'torch', 'numpy', 'gguf', 'tokenizers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_an_output_matrix_tied_to_the_embedding_is_not_stored_twice(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "m", "llama", tie_word_embeddings=True)
    file = tmp_path / "m" / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, file, {"format": "pt"})
    assert "lm_head.weight" not in open_weights(prepare(str(tmp_path / "m"), quantization="int8"))


def test_pickled_checkpoints_are_packed_as_well(folder: Path) -> None:
    expected = open_weights(prepare(str(folder), quantization="int4"))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    checkpoint = prepare(str(folder), quantization="int4")
    assert checkpoint.format == "pytorch"
    weights = open_weights(checkpoint)
    assert layouts(weights) == layouts(expected)
    for name, tensor in weights.items():
        data = tensor.data if isinstance(tensor, PackedTensor) else tensor
        other = expected[name]
        assert torch.equal(data, other.data if isinstance(other, PackedTensor) else other)


def test_the_file_begins_its_tensors_at_cache_lines_and_others_can_open_it(folder: Path) -> None:
    checkpoint = prepare(str(folder), quantization="int4")
    from inferloom.formats.safetensors_file import read_header

    header = read_header(Path(checkpoint.weights[0]))
    assert all(tensor.offset % 64 == 0 for tensor in header.tensors.values() if tensor.dtype == "U8")
    assert set(load_file(checkpoint.weights[0])) == set(header.tensors)
    assert all(
        tensor.data.data_ptr() % 64 == 0
        for tensor in open_weights(checkpoint).values()
        if isinstance(tensor, PackedTensor)
    )


@pytest.mark.parametrize(
    ("kind", "scheme", "linear", "embedding"),
    [
        (Kind.Q4_0, "int8", None, None),
        (Kind.Q8_0, "int8", None, None),
        (Kind.F16, "int8", Layout.Q8_ROW, Layout.Q8_HALVES),
        (Kind.Q4_1, "int4", None, None),
        (Kind.Q8_0, "int4", Layout.Q4Z_32, Layout.Q8_32),
        (Kind.F16, "int4", Layout.Q4Z_32, Layout.Q8_HALVES),
        (Kind.Q4_1, "int4-all", None, None),
        (Kind.Q8_0, "int4-all", Layout.Q4Z_32, Layout.Q4Z_32),
        (Kind.F16, "int4-all", Layout.Q4Z_32, Layout.Q4Z_32),
    ],
)
def test_a_gguf_keeps_what_is_narrow_enough(
    kind: Kind, scheme: str, linear: Layout | None, embedding: Layout | None, tmp_path: Path
) -> None:
    vocabulary = gguf.byte_vocabulary()
    tensors = gguf.random_tensors(len(vocabulary.tokens))
    path = gguf.write(tmp_path / "m.gguf", vocabulary=vocabulary, tensors=tensors, kind=kind)
    plain = prepare(str(path))
    packed = prepare(str(path), quantization=scheme)
    assert locate(str(path), quantization=scheme) == packed
    if linear is None:
        assert packed == plain
        return
    assert packed.folder == plain.folder
    found = layouts(open_weights(packed))
    assert found["model.layers.0.mlp.up_proj.weight"] is linear
    assert found["model.embed_tokens.weight"] is embedding
    screen = Layout.Q4_DITHERED if embedding is Layout.Q8_32 else None  # of what is packed anew none is left
    assert found.get("model.embed_tokens.screen") is screen


def test_encoders_and_unknown_schemes_are_refused(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "bert", "bert")
    for look in (locate, prepare):
        with pytest.raises(Unsupported, match=r"'int8' for BertModel is not supported: only decoders"):
            look(str(tmp_path / "bert"), quantization="int8")
        with pytest.raises(Unsupported, match="there are none, int8, int4, int4-all, awq and gptq"):
            look(str(tmp_path / "bert"), quantization="int3")


def test_weights_that_are_not_finite_are_named(folder: Path, cache: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 3] = float("nan")
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(
        Exception, match=r"model\.layers\.1\.mlp\.up_proj\.weight cannot be packed: .* not finite"
    ):
        prepare(str(folder), quantization="int4")
    assert not list((cache / "packed").iterdir())


# --- room and life of the cache ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["older", "manifest", "weights"])
def test_an_older_or_damaged_entry_is_rebuilt(damage: str, folder: Path) -> None:
    checkpoint = prepare(str(folder), quantization="int8")
    file = Path(checkpoint.weights[0])
    good = file.read_bytes()
    manifest = file.parent / "inferloom.json"
    if damage == "older":
        changed = json.loads(manifest.read_text()) | {"version": packed_cache.VERSION - 1}
        manifest.write_text(json.dumps(changed))
    elif damage == "manifest":
        manifest.write_text("{")
    else:
        file.write_bytes(b"short")
    assert locate(str(folder), quantization="int8") is None
    assert prepare(str(folder), quantization="int8") == checkpoint
    assert file.read_bytes() == good


def test_processes_that_pack_the_same_at_once_do_it_once(folder: Path) -> None:
    def run(_: int) -> str:
        command = [sys.executable, "-m", "inferloom.formats.prepare", str(folder), "--quantization", "int8"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=90)
        assert done.returncode == 0, done.stderr
        return done.stdout

    with ThreadPoolExecutor(3) as pool:
        outputs = list(pool.map(run, range(3)))
    assert len({output.splitlines()[-1] for output in outputs}) == 1
    assert sum('"pack"' in output for output in outputs) == 1


def test_a_process_that_was_killed_leaves_nothing_that_is_believed(folder: Path, cache: Path) -> None:
    code = (
        "import os, signal; from inferloom.formats import packing\n"
        "from inferloom.formats.prepare import prepare\n"
        "def die(*_): os.kill(os.getpid(), signal.SIGKILL)\n"
        "real = packing._pieces\n"
        "def pieces(tensor, layout):\n"
        "    yield from real(tensor, layout)\n"
        "    if 'layers.1' in tensor.name: die()\n"
        "packing._pieces = pieces\n"
        f"prepare({str(folder)!r}, quantization='int8')"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=60, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert [path.suffix for path in (cache / "packed").iterdir()] == [".partial"]
    assert locate(str(folder), quantization="int8") is None
    assert entries.entries() == []
    entries.remove_leftovers()
    assert not list((cache / "packed").iterdir())
    prepare(str(folder), quantization="int8")


def test_no_room_is_told_with_the_numbers(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(folder)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
        with pytest.raises(
            LoadFailed, match=r"the disk is full: the converted copy of m in int8 needs .* 0 MB are free"
        ):
            prepare(str(folder), quantization="int8")
    monkeypatch.setenv("INFERLOOM_CACHE_LIMIT", "1kB")
    with pytest.raises(LoadFailed, match=r"the cache may hold 0 MB; raise INFERLOOM_CACHE_LIMIT"):
        prepare(str(folder), quantization="int8")
    assert not list((cache / "packed").iterdir())
    monkeypatch.setenv("INFERLOOM_CACHE_LIMIT", "much")
    with pytest.raises(ConfigError, match="INFERLOOM_CACHE_LIMIT is 'much'"):
        prepare(str(folder), quantization="int8")


def sized(checkpoint: Checkpoint) -> int:
    return sum(file.stat().st_size for file in Path(checkpoint.weights[0]).parent.iterdir())


def test_the_longest_unused_go_first_and_what_is_mapped_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(4):
        make_checkpoint(tmp_path / str(seed), "llama", seed=seed)
    made = [prepare(str(tmp_path / str(seed)), quantization="int8") for seed in range(3)]
    for age, checkpoint in zip((3000, 2000, 1000), made, strict=True):
        loosen(str(Path(checkpoint.weights[0]).parent), age)
    held = open_weights(made[0])
    loosen(str(Path(made[0].weights[0]).parent), 3000)
    monkeypatch.setenv("INFERLOOM_CACHE_LIMIT", str(3 * sized(made[0]) + 100))
    prepare(str(tmp_path / "3"), quantization="int8")
    assert [locate(str(tmp_path / str(seed)), quantization="int8") is not None for seed in range(4)] == [
        True,
        False,
        True,
        True,
    ]
    held.close()
    (entry,) = [entry for entry in entries.entries() if entry.name == "0"]
    assert not entry.in_use
    assert entries.remove(entry)


def test_mapping_an_entry_counts_as_use(folder: Path) -> None:
    checkpoint = prepare(str(folder), quantization="int8")
    loosen(str(Path(checkpoint.weights[0]).parent))
    weights = open_weights(checkpoint)
    (entry,) = entries.entries()
    assert time.time() - entry.last_use < 100
    assert entry.in_use
    assert not entries.remove(entry)
    assert np.asarray(weights["model.norm.weight"].float()).any()
    weights.close()
    assert entries.remove(entry)
