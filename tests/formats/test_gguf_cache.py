"""GGUF files become safetensors in the kernels' layouts, once for each content."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import gguf
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Kind
from gguf.quants import dequantize

from inferloom.errors import InferloomError, InvalidFormat, LoadFailed, SourceNotFound
from inferloom.formats import gguf_blocks, gguf_cache, gguf_tensors
from inferloom.formats.checkpoint import Checkpoint
from inferloom.formats.gguf_file import GgufFile
from inferloom.formats.layouts import Layout, PackedTensor, dequantise
from inferloom.formats.weights import Weights, open_weights
from inferloom.types import LoadProgress


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INFERLOOM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def ignore(progress: LoadProgress) -> None:
    return


def opened(path: Path) -> Weights:
    folder = gguf_cache.convert(path, ignore)
    weights = gguf_cache.weights(folder)
    return open_weights(Checkpoint(source="x", name="x", folder=str(folder), weights=weights, format="gguf"))


def converted(path: Path) -> dict[str, torch.Tensor]:
    """All tensors as floats."""
    return {
        name: dequantise(tensor) if isinstance(tensor, PackedTensor) else tensor
        for name, tensor in opened(path).items()
    }


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_weights_and_configuration_equal_those_that_transformers_loads(
    family: str, tied: bool, tmp_path: Path
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    vocabulary = gguf.byte_vocabulary()
    tensors = gguf.random_tensors(len(vocabulary.tokens), tied=tied, family=family)
    # transformers reads Qwen's head size from the key, the other two families' from the division
    keys = {f"{family}.attention.key_length": gguf.HEAD_DIM} if family == "qwen3" else {}
    path = gguf.write(tmp_path / "m.gguf", family=family, vocabulary=vocabulary, tensors=tensors, keys=keys)
    their_config = AutoConfig.from_pretrained(tmp_path, gguf_file="m.gguf")
    shell = AutoModelForCausalLM.from_config(their_config)
    theirs = load_gguf_checkpoint(path, return_tensors=True, model_to_load=shell)["tensors"]
    ours = converted(path)
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, theirs[name]), name
    loaded = AutoConfig.from_pretrained(gguf_cache.convert(path, ignore))
    assert type(loaded) is type(their_config)
    assert loaded.head_dim == gguf.HEAD_DIM
    assert loaded.tie_word_embeddings is tied


@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        (Kind.F16, torch.float16),
        (Kind.BF16, torch.bfloat16),
        (Kind.Q4_0, Layout.Q4S_32),
        (Kind.Q4_1, Layout.Q4_32),
        (Kind.Q5_0, Layout.Q8_32),
        (Kind.Q8_0, Layout.Q8_32),
    ],
)
def test_common_quantisations_keep_their_bits_and_every_value(
    kind: Kind, layout: Layout | torch.dtype, tmp_path: Path
) -> None:
    vocabulary = gguf.byte_vocabulary()  # 420 tokens: no multiple of 16
    tensors = gguf.random_tensors(len(vocabulary.tokens))
    weights = opened(gguf.write(tmp_path / "m.gguf", vocabulary=vocabulary, tensors=tensors, kind=kind))
    for ours, theirs in (
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.layers.1.mlp.down_proj.weight", "blk.1.ffn_down.weight"),
    ):
        expected = torch.from_numpy(dequantize(gguf.gguf.quants.quantize(tensors[theirs], kind), kind))
        tensor = weights[ours]
        if isinstance(tensor, PackedTensor):
            assert tensor.layout is layout
            assert torch.equal(dequantise(tensor), expected)
        else:
            assert tensor.dtype == layout
            assert torch.equal(tensor.float(), expected)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("kind", "screened"), [(Kind.Q8_0, True), (Kind.Q5_0, True), (Kind.Q4_0, False), (Kind.F16, False)]
)
def test_an_output_matrix_of_eight_bits_has_a_screen(
    kind: Kind, screened: bool, tied: bool, tmp_path: Path
) -> None:
    """Sixteen times its numbers are within what was cut off of the values in the file beside it."""
    vocabulary = gguf.byte_vocabulary()
    tensors = gguf.random_tensors(len(vocabulary.tokens), tied=tied)
    path = gguf.write(tmp_path / "m.gguf", vocabulary=vocabulary, tensors=tensors, kind=kind)
    weights = opened(path)
    head = "model.embed_tokens" if tied else "lm_head"
    screen = weights.get(f"{head}.screen")
    assert [name for name in weights if name.endswith(".screen")] == [f"{head}.screen"] * screened
    if not screened:
        return
    assert isinstance(screen, PackedTensor) and screen.layout is Layout.Q4_DITHERED
    values = weights[f"{head}.weight"]
    assert isinstance(values, PackedTensor) and values.layout is Layout.Q8_32
    exact, middle = dequantise(values), dequantise(screen)
    groups = torch.nn.functional.pad(exact, (0, -exact.shape[1] % 32)).unflatten(1, (-1, 32))
    step = (groups.abs().amax(-1) / 120).repeat_interleave(32, dim=1)[:, : exact.shape[1]]
    assert ((exact - middle).abs() <= step * 8.01).all()  # float16 rounds a step up
    assert (exact - middle).abs().amax() > step.amax() * 7


def packed_rows(raw: np.ndarray, kind: Kind, width: int, folder: Path) -> tuple[PackedTensor, torch.Tensor]:
    """A matrix of blocks as it goes through a GGUF file: packed, and its values by the `gguf` package."""
    writer = gguf.gguf.GGUFWriter(folder / "m.gguf", "llama")
    writer.add_tensor("token_embd.weight", raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GgufFile(folder / "m.gguf") as file:
        placed = gguf_tensors.Placed("x", file.tensors["token_embd.weight"], file)
        stored = gguf_tensors.stored(placed)
        data = b"".join(bytes(piece) for piece in gguf_tensors.pieces(placed))
    assert stored.layout is not None
    assert len(data) == stored.size
    packed = PackedTensor(
        stored.layout, (len(raw), width), torch.frombuffer(bytearray(data), dtype=torch.uint8)
    )
    return packed, torch.from_numpy(np.ascontiguousarray(dequantize(raw, kind), dtype=np.float32))


def random_blocks(kind: Kind, rows: int, blocks: int) -> np.ndarray:
    """Any bits but in the scales, which are ordinary numbers."""
    chance = np.random.default_rng(int(kind))
    size = GGML_QUANT_SIZES[kind][1]
    raw = chance.integers(0, 256, size=(rows, blocks, size), dtype=np.uint8)
    halves = {Kind.Q6_K: [208], Kind.Q3_K: [108], Kind.Q2_K: [80, 82], Kind.TQ1_0: [52]}.get(kind, [0])
    if kind in (Kind.Q4_K, Kind.Q5_K, Kind.Q5_1):
        halves = [0, 2]
    if kind is Kind.MXFP4:
        raw[..., 0] = chance.integers(120, 130, size=(rows, blocks))
        halves = []
    for at in halves:
        numbers = chance.uniform(0.001, 0.01, size=(rows, blocks)).astype(np.float16)
        raw[..., at : at + 2] = numbers[..., None].view(np.uint8)
    return raw.reshape(rows, -1)


def test_q4_k_keeps_its_nibbles_and_rounds_scales_to_float16(tmp_path: Path) -> None:
    packed, expected = packed_rows(random_blocks(Kind.Q4_K, 37, 3), Kind.Q4_K, 768, tmp_path)
    assert packed.layout is Layout.Q4_32
    groups = expected.view(37, -1, 32)
    smallest, largest = groups.amin(2, keepdim=True), groups.amax(2, keepdim=True)
    bound = 2**-11 * (2 * smallest.abs() + 2 * (largest - smallest).abs()) + 1e-7
    assert ((dequantise(packed).view(37, -1, 32) - groups).abs() <= bound).all()


@pytest.mark.parametrize(
    "kind",
    [Kind.Q5_1, Kind.Q5_K, Kind.Q6_K, Kind.Q2_K, Kind.Q3_K, Kind.TQ1_0, Kind.MXFP4]
    + [Kind.IQ2_XXS, Kind.IQ3_S, Kind.IQ4_XS, Kind.IQ4_NL],
)
def test_all_other_quantisations_become_the_nearest_eight_bits(kind: Kind, tmp_path: Path) -> None:
    block = GGML_QUANT_SIZES[kind][0]
    width = 3 * block
    packed, expected = packed_rows(random_blocks(kind, 37, 3), kind, width, tmp_path)
    assert packed.layout is Layout.Q8_32
    groups = expected.view(37, -1, 32)
    step = groups.abs().amax(2, keepdim=True) / 127 * 1.002  # the scale is rounded upwards to float16
    off = (dequantise(packed).view(37, -1, 32) - groups).abs()
    assert (off <= step / 2 + 1e-7).all()


def test_what_has_no_way_of_its_own_is_dequantised_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert not gguf_blocks.is_foreign(Kind.Q6_K)
    vocabulary = gguf.byte_vocabulary()
    tensors = gguf.random_tensors(len(vocabulary.tokens))
    path = gguf.write(tmp_path / "m.gguf", vocabulary=vocabulary, tensors=tensors, kind=Kind.MXFP4)
    gguf_cache.convert(path, ignore)
    assert "m.gguf: tensors in MXFP4 are dequantised and kept in 8 bits" in caplog.text


def test_scales_that_float16_cannot_hold_are_refused(tmp_path: Path) -> None:
    raw = random_blocks(Kind.Q4_0, 16, 2)
    raw[3, 0:2] = np.array([np.inf], np.float16).view(np.uint8)
    with pytest.raises(InvalidFormat, match=r"'token_embd\.weight' has scales beyond the range of float16"):
        packed_rows(raw, Kind.Q4_0, 64, tmp_path)


def test_a_large_tensor_is_converted_in_pieces(tmp_path: Path) -> None:
    vocabulary = gguf.byte_vocabulary()
    tensors = gguf.random_tensors(len(vocabulary.tokens))
    tensors["output.weight"] = np.zeros((200_000, gguf.HIDDEN), np.float32)  # 51 MB
    path = gguf.write(tmp_path / "m.gguf", vocabulary=vocabulary, tensors=tensors)
    tracemalloc.start()
    try:
        gguf_cache.convert(path, ignore)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40e6


def test_a_file_is_converted_once_and_a_copy_of_it_not_at_all(tmp_path: Path) -> None:
    path = gguf.write(tmp_path / "m.gguf")
    seen: list[LoadProgress] = []
    assert gguf_cache.converted(path) is None
    folder = gguf_cache.convert(path, seen.append)
    assert {progress.stage for progress in seen} == {"check", "convert"}
    assert gguf_cache.converted(path) == folder
    copy = tmp_path / "copy.gguf"
    shutil.copy(path, copy)
    assert gguf_cache.converted(copy) is None
    seen.clear()
    assert gguf_cache.convert(copy, seen.append) == folder
    assert {progress.stage for progress in seen} == {"check"}


def test_a_file_that_changed_is_another_one(tmp_path: Path) -> None:
    path = gguf.write(tmp_path / "m.gguf")
    first = gguf_cache.convert(path, ignore)
    vocabulary = gguf.byte_vocabulary()
    gguf.write(path, vocabulary=vocabulary, tensors=gguf.random_tensors(len(vocabulary.tokens), seed=9))
    os.utime(path, ns=(1, 1))
    assert gguf_cache.converted(path) is None
    second = gguf_cache.convert(path, ignore)
    assert second != first
    assert first.exists()


@pytest.mark.parametrize("damage", ["older", "manifest", "weights"])
def test_an_older_or_damaged_copy_is_rebuilt(damage: str, tmp_path: Path) -> None:
    path = gguf.write(tmp_path / "m.gguf")
    folder = gguf_cache.convert(path, ignore)
    good = (folder / "model.safetensors").read_bytes()
    manifest = folder / "inferloom.json"
    if damage == "older":
        manifest.write_text(
            json.dumps({**json.loads(manifest.read_text()), "version": gguf_cache.VERSION - 1})
        )
    elif damage == "manifest":
        manifest.write_text("{")
    else:
        (folder / "model.safetensors").write_bytes(b"short")
    assert gguf_cache.converted(path) is None
    assert gguf_cache.convert(path, ignore) == folder
    assert (folder / "model.safetensors").read_bytes() == good
    assert [entry.name for entry in folder.parent.iterdir()] == [folder.name]


def test_processes_that_convert_the_same_file_at_once_do_it_once(tmp_path: Path) -> None:
    path = gguf.write(tmp_path / "m.gguf")

    def run(_: int) -> str:
        command = [sys.executable, "-m", "inferloom.formats.prepare", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=90)
        assert done.returncode == 0, done.stderr
        return done.stdout

    with ThreadPoolExecutor(3) as pool:
        outputs = list(pool.map(run, range(3)))
    assert len({output.splitlines()[-1] for output in outputs}) == 1
    assert sum('"convert"' in output for output in outputs) == 1


def test_the_parts_of_a_split_model_are_read_together(tmp_path: Path) -> None:
    vocabulary = gguf.byte_vocabulary()
    tensors = gguf.random_tensors(len(vocabulary.tokens))
    names = sorted(tensors)
    halves: list[dict[str, Any]] = [{name: tensors[name] for name in part} for part in (names[:9], names[9:])]
    first = gguf.write(tmp_path / "m-00001-of-00002.gguf", vocabulary=vocabulary, tensors=halves[0])
    with pytest.raises(
        SourceNotFound, match=r"comes in 2 parts, and m-00002-of-00002\.gguf is not beside it"
    ):
        gguf_cache.convert(first, ignore)
    second = gguf.write(tmp_path / "m-00002-of-00002.gguf", vocabulary=vocabulary, tensors=halves[1])
    whole = converted(gguf.write(tmp_path / "whole.gguf", vocabulary=vocabulary, tensors=tensors))
    for named in (first, second):
        parts = converted(named)
        assert set(parts) == set(whole)
        assert all(torch.equal(parts[name], whole[name]) for name in whole)


@pytest.mark.parametrize(
    ("tensors", "error", "says"),
    [
        (
            {"blk.0.ffn_gate_inp.weight": (4, 64)},
            LoadFailed,
            "a tensor 'blk.0.ffn_gate_inp.weight' that this version",
        ),
        ({"blk.7.ffn_up.weight": (96, 64)}, LoadFailed, "a tensor 'blk.7.ffn_up.weight'"),
        ({"blk.0.attn_q.weight": (6, 64)}, InvalidFormat, "which 4 heads cannot share"),
        ({"blk.0.attn_q.bias": (6,)}, InvalidFormat, "which 4 heads cannot share"),
        ({"token_embd.weight": (10, 64)}, InvalidFormat, "vocabulary has 420 tokens, its embedding 10"),
        ({"token_embd.weight": (10,)}, InvalidFormat, "no embedding matrix"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    tensors: dict[str, tuple[int, ...]], error: type[InferloomError], says: str, tmp_path: Path, cache: Path
) -> None:
    vocabulary = gguf.byte_vocabulary()
    all_tensors = gguf.random_tensors(len(vocabulary.tokens))
    all_tensors |= {name: np.zeros(shape, np.float32) for name, shape in tensors.items()}
    path = gguf.write(tmp_path / "m.gguf", vocabulary=vocabulary, tensors=all_tensors)
    with pytest.raises(error, match=says):
        gguf_cache.convert(path, ignore)
    assert not list((cache / "gguf").iterdir())


def test_a_file_that_lacks_layers_is_refused(tmp_path: Path) -> None:
    path = gguf.write(tmp_path / "m.gguf", keys={"llama.block_count": 2_000_000_000})
    with pytest.raises(InvalidFormat, match="the GGUF file has 2 of its 2000000000 layers"):
        gguf_cache.convert(path, ignore)


def test_biases_of_q_and_k_are_put_in_order_with_their_rows(tmp_path: Path) -> None:
    vocabulary = gguf.byte_vocabulary()
    tensors = gguf.random_tensors(len(vocabulary.tokens))
    for layer in range(gguf.LAYERS):
        for part in ("q", "k"):
            matrix = tensors[f"blk.{layer}.attn_{part}.weight"]
            tensors[f"blk.{layer}.attn_{part}.bias"] = np.ascontiguousarray(matrix[:, 0])
    ours = converted(gguf.write(tmp_path / "m.gguf", vocabulary=vocabulary, tensors=tensors))
    for part in ("q", "k"):
        name = f"model.layers.1.self_attn.{part}_proj"
        assert torch.equal(ours[f"{name}.bias"], ours[f"{name}.weight"][:, 0])


def test_no_room_is_told_before_writing_and_when_it_happens(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = gguf.write(tmp_path / "m.gguf")
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
        with pytest.raises(
            LoadFailed, match=r"the disk is full: the converted copy of m\.gguf needs .* INFERLOOM_CACHE"
        ):
            gguf_cache.convert(path, ignore)
    with monkeypatch.context() as patch:

        def full(*given: object) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr(gguf_cache, "_write", full)
        with pytest.raises(LoadFailed, match="No space left on device; make room"):
            gguf_cache.convert(path, ignore)
    assert not list((cache / "gguf").iterdir())
    assert gguf_cache.convert(path, ignore).exists()
