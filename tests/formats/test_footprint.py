"""What a checkpoint will take is known from its headers: the same as what loading it then says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import gguf
from factories.checkpoints import DECODERS, ENCODERS, FOREIGN, Family, make_checkpoint
from formats.test_four_bit import make as make_four_bit
from gguf.constants import GGMLQuantizationType as Kind

from inferloom.errors import InvalidFormat, Unsupported
from inferloom.formats.checkpoint import Checkpoint
from inferloom.formats.footprint import (
    CPU_STEP_TOKENS,
    PAGE_TOKENS,
    Draft,
    config_of,
    footprint_of,
    step_tokens,
)
from inferloom.formats.model_shape import shape_of
from inferloom.formats.planned_weights import planned
from inferloom.formats.prepare import prepare
from inferloom.formats.weights import open_weights
from inferloom.models.batch import PAGE_SIZE, Executor
from inferloom.models.loader import load

WIDE = {"hidden_size": 192, "intermediate_size": 320, "num_attention_heads": 6, "num_key_value_heads": 3}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERLOOM_CACHE", str(tmp_path / "cache"))


def mapped_bytes(checkpoint: Checkpoint) -> int:
    weights = open_weights(checkpoint)
    size = weights.nbytes
    weights.close()
    return size


def planned_bytes(checkpoint: Checkpoint, quantization: str) -> int:
    return sum(tensor.size for tensor in planned(checkpoint, config_of(checkpoint), quantization))


def test_the_page_is_the_engines() -> None:
    assert PAGE_TOKENS == PAGE_SIZE


@pytest.mark.parametrize("sizes", [{}, WIDE], ids=["tiny", "wide"])
@pytest.mark.parametrize("family", [*DECODERS, *FOREIGN])
def test_a_page_and_the_context_of_every_family_are_those_of_its_executor(
    family: Family, sizes: dict[str, Any], tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(tmp_path / "m", family, dtype=torch.bfloat16, **sizes)
    executor = load(checkpoint)
    assert isinstance(executor, Executor)
    found = footprint_of(checkpoint, max_batch_size=4)
    assert found.kv_page == executor.kv_bytes_per_page
    assert found.kv_pages == 4 * -(-executor.card.max_model_len // PAGE_SIZE)
    stepped = executor.card.executor.startswith("native")
    assert shape_of(config_of(checkpoint)).stepped is stepped


def test_what_config_json_leaves_out_is_what_the_family_means(tmp_path: Path) -> None:
    for family in DECODERS:
        checkpoint = make_checkpoint(tmp_path / family, family)
        path = Path(checkpoint.folder) / "config.json"
        config = json.loads(path.read_text())
        for key in ("num_key_value_heads", "head_dim", "max_position_embeddings"):
            config.pop(key, None)
        from inferloom.models.spec import DecoderSpec

        if family == "qwen2":  # its 32 key-value heads would not fit
            config["num_attention_heads"] = 32
        try:
            spec = DecoderSpec.from_config(config)
        except InvalidFormat:
            continue  # the family's own defaults do not fit so small a model
        shape = shape_of(config)
        assert (shape.layers, shape.kv_heads, shape.key_dim) == (spec.layers, spec.kv_heads, spec.head_dim)
        assert shape.positions == spec.max_positions


@pytest.mark.parametrize("activation_dtype", ["float32", "bfloat16"])
def test_a_page_is_as_wide_as_the_arithmetic(activation_dtype: str, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "m", "qwen3")
    executor = load(checkpoint, activation_dtype=activation_dtype)
    assert isinstance(executor, Executor)
    assert footprint_of(checkpoint, activation_dtype=activation_dtype).kv_page == executor.kv_bytes_per_page


def test_a_page_of_int8_has_scales(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "m", "qwen3")
    executor = load(checkpoint, kv_dtype="int8")
    assert isinstance(executor, Executor)
    assert footprint_of(checkpoint, kv_dtype="int8").kv_page == executor.kv_bytes_per_page


@pytest.mark.parametrize("family", ENCODERS)
def test_an_encoder_has_no_pages(family: Family, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "m", family, dtype=torch.bfloat16)
    found = footprint_of(checkpoint)
    assert (found.kv_page, found.kv_pages, found.kv_least) == (0, 0, 0)
    assert found.weights == mapped_bytes(checkpoint)


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gpt2", "gpt_neox", "phi3"])
def test_packed_weights_are_known_to_the_byte_before_they_are_packed(
    family: Family, quantization: str, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(tmp_path / "m", family, dtype=torch.bfloat16, **WIDE)
    expected = planned_bytes(checkpoint, quantization)
    ready = prepare(checkpoint.source, quantization=quantization)
    assert expected == mapped_bytes(ready) == planned_bytes(ready, quantization)


@pytest.mark.parametrize("quantization", ["none", "int8"])
@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_layers_that_awq_and_gptq_made_are_known_to_the_byte(
    method: str, quantization: str, tmp_path: Path
) -> None:
    make_four_bit(tmp_path / "m", method)
    folder = tmp_path / "m"
    raw = Checkpoint(
        source=str(folder),
        name="m",
        folder=str(folder),
        weights=(str(folder / "model.safetensors"),),
        format="safetensors",
    )
    expected = planned_bytes(raw, quantization)
    assert expected == mapped_bytes(prepare(str(folder), quantization=quantization))


@pytest.mark.parametrize("kind", [Kind.F32, Kind.BF16, Kind.Q4_1, Kind.Q8_0])
def test_a_gguf_file_is_known_before_it_is_converted(kind: Kind, tmp_path: Path) -> None:
    path = gguf.write(tmp_path / "m.gguf", kind=kind)
    raw = Checkpoint(source=str(path), name="m", folder=str(tmp_path), weights=(str(path),), format="gguf")
    before = footprint_of(raw, max_batch_size=4)
    ready = prepare(str(path))
    assert planned_bytes(raw, "none") == mapped_bytes(ready)
    assert before == footprint_of(ready, max_batch_size=4)


def test_copies_that_the_arithmetic_wants_count_as_weights(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "m", "llama", dtype=torch.bfloat16, **WIDE)
    mapped = mapped_bytes(checkpoint)
    assert mapped <= footprint_of(checkpoint).weights < 1.05 * mapped  # norms are copied, matrices are not
    assert footprint_of(checkpoint, activation_dtype="float32").weights == 2 * mapped
    assert footprint_of(checkpoint, native=False).weights == mapped


def test_the_least_is_a_whole_context_only_where_one_was_asked_for(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "m", "llama")
    assert footprint_of(checkpoint).kv_least == 1
    asked = footprint_of(checkpoint, max_model_len=100, max_batch_size=3)
    assert (asked.kv_least, asked.kv_pages) == (4, 12)


def test_a_drafts_pages_stand_beside_the_others(tmp_path: Path) -> None:
    large = make_checkpoint(tmp_path / "large", "llama", layers=4)
    small = make_checkpoint(tmp_path / "small", "llama", layers=1)
    alone, drafted = footprint_of(large), footprint_of(large, draft=Draft(small))
    draft = footprint_of(small)
    assert drafted.kv_page == alone.kv_page + draft.kv_page
    assert drafted.weights == alone.weights + draft.weights
    assert drafted.kv_pages == alone.kv_pages


def test_a_step_on_a_cpu_is_bounded_unless_throughput_is_all() -> None:
    assert step_tokens(10240, device="cpu", batch_policy="adaptive") == CPU_STEP_TOKENS
    assert step_tokens(10240, device="cpu", batch_policy="greedy") == 10240
    assert step_tokens(10240, device="cuda:0", batch_policy="adaptive") == 10240
    assert step_tokens(64, device="cpu", batch_policy="eager") == 64


def test_what_cannot_be_loaded_is_refused_as_loading_refuses_it(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "m", "llama")
    with pytest.raises(Unsupported, match="awq"):
        footprint_of(checkpoint, quantization="awq")
    (tmp_path / "m" / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(InvalidFormat, match="damaged"):
        footprint_of(checkpoint)
    (tmp_path / "m" / "config.json").write_text("[1]")
    with pytest.raises(InvalidFormat, match="holds no JSON object"):
        footprint_of(checkpoint)


def test_asking_costs_no_torch(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "m", "llama", dtype=torch.bfloat16)
    code = (
        "import sys; from inferloom.formats.checkpoint import Checkpoint; "
        "from inferloom.formats.footprint import footprint_of; "
        f"footprint_of({checkpoint!r}, quantization='int4'); "
        "print([name for name in ('torch', 'numpy', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
