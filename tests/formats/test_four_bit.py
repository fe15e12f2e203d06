"""AWQ and GPTQ checkpoints become Q4_32 with the values they stand for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories.checkpoints import make_checkpoint
from safetensors.torch import load_file, save_file

from inferloom.errors import InvalidFormat, Unsupported
from inferloom.formats.checkpoint import Checkpoint
from inferloom.formats.layouts import Layout, PackedTensor, dequantise
from inferloom.formats.prepare import locate, prepare
from inferloom.formats.weights import open_weights

AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)  # the column that each nibble of a word holds, as AutoAWQ writes them


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INFERLOOM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def words(numbers: np.ndarray, order: tuple[int, ...]) -> torch.Tensor:
    """[a, 8 b] numbers of four bits → int32 [a, b]."""
    eights = numbers.reshape(len(numbers), -1, 8).astype(np.uint32)
    packed = sum(eights[:, :, column] << np.uint32(4 * place) for place, column in enumerate(order))
    return torch.from_numpy(np.ascontiguousarray(packed, dtype=np.uint32).view(np.int32))


def quantised(
    weight: torch.Tensor, size: int, method: str, *, symmetric: bool, offset: int = 1
) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """The parts of a layer [out, in] in groups of `size` inputs, and the values they stand for."""
    outputs, inputs = weight.shape
    groups = weight.float().numpy().reshape(outputs, -1, size)
    if symmetric:
        scale = (np.abs(groups).max(2) / 7).astype(np.float16)
        zero = np.full(scale.shape, 8)
    else:
        low, high = np.minimum(groups.min(2), 0), np.maximum(groups.max(2), 0)
        scale = ((high - low) / 15).astype(np.float16)
        zero = np.clip(np.rint(-low / scale.astype(np.float32)), 1, 15).astype(int)
    wide = scale.astype(np.float32)[..., None]
    numbers = np.clip(np.rint(groups / wide) + zero[..., None], 0, 15).astype(int)
    values = ((numbers - zero[..., None]) * wide).reshape(outputs, inputs)
    numbers = numbers.reshape(outputs, inputs)
    parts = {"scales": torch.from_numpy(np.ascontiguousarray(scale.T))}
    if method == "awq":
        parts["qweight"] = words(numbers.T, AWQ_COLUMNS)
        parts["qzeros"] = words(zero.T, AWQ_COLUMNS)
    else:
        parts["qweight"] = words(numbers, tuple(range(8))).t().contiguous()
        parts["qzeros"] = words(zero.T - offset, tuple(range(8)))
        parts["g_idx"] = torch.arange(inputs, dtype=torch.int32) // size
    return parts, values


def make(
    folder: Path, method: str, *, size: int = 32, symmetric: bool = True, offset: int = 1, **config: Any
) -> dict[str, np.ndarray]:
    """A small Llama whose linear layers are quantised, float16 elsewhere; the values of those layers."""
    checkpoint = make_checkpoint(
        folder,
        "llama",
        dtype=torch.float16,
        tie_word_embeddings=False,
        hidden_size=128,
        intermediate_size=192,
    )
    tensors = load_file(checkpoint.weights[0])
    values = {}
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        parts, values[name] = quantised(tensors.pop(name), size, method, symmetric=symmetric, offset=offset)
        tensors.update({f"{name.removesuffix('weight')}{part}": tensor for part, tensor in parts.items()})
    save_file(tensors, checkpoint.weights[0], {"format": "pt"})
    written = json.loads((folder / "config.json").read_text())
    written["quantization_config"] = {"quant_method": method, "bits": 4, "group_size": size, **config}
    (folder / "config.json").write_text(json.dumps(written))
    return values


def opened(checkpoint: Checkpoint) -> dict[str, Any]:
    return dict(open_weights(checkpoint))


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_symmetric_files_are_exact(method: str, size: int, tmp_path: Path) -> None:
    values = make(tmp_path / "m", method, size=size)
    assert locate(str(tmp_path / "m")) is None
    checkpoint = prepare(str(tmp_path / "m"))
    assert checkpoint.quantization == method
    assert checkpoint.folder == str(tmp_path / "m")
    weights = opened(checkpoint)
    for name, expected in values.items():
        assert isinstance(weights[name], PackedTensor)
        assert weights[name].layout is Layout.Q4_32
        assert np.array_equal(dequantise(weights[name]).numpy(), expected), name
    assert weights["model.embed_tokens.weight"].dtype == torch.float16
    assert not [name for name in weights if name.endswith(("qweight", "qzeros", "scales", "g_idx"))]
    assert locate(str(tmp_path / "m")) == checkpoint == prepare(str(tmp_path / "m"), quantization=method)


@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_zeros_anywhere_cost_the_rounding_of_the_minimum(method: str, tmp_path: Path) -> None:
    values = make(tmp_path / "m", method, symmetric=False)
    weights = opened(prepare(str(tmp_path / "m")))
    for name, expected in values.items():
        step = np.abs(expected).reshape(len(expected), -1, 32).max(2, keepdims=True)
        off = np.abs(dequantise(weights[name]).numpy() - expected).reshape(len(expected), -1, 32)
        assert (off <= 2**-11 * 15 * step).all()


def test_zeros_of_the_second_gptq_format_are_not_shifted(tmp_path: Path) -> None:
    values = make(tmp_path / "m", "gptq", offset=0, checkpoint_format="gptq_v2")
    weights = opened(prepare(str(tmp_path / "m")))
    assert all(np.array_equal(dequantise(weights[name]).numpy(), values[name]) for name in values)


def test_one_group_for_all_inputs_and_rows_that_sixteen_does_not_divide(tmp_path: Path) -> None:
    from inferloom.formats.four_bit import assembled
    from inferloom.formats.tensor_sources import FloatSource

    parts, expected = quantised(torch.randn(40, 96), 96, "awq", symmetric=True)
    kinds = {torch.int32: "I32", torch.float16: "F16"}
    tensors = {
        f"x.{part}": FloatSource(
            f"x.{part}", tuple(t.shape), kinds[t.dtype], t.contiguous().view(-1).view(torch.uint8).numpy()
        )
        for part, t in parts.items()
    }
    config = {"quant_method": "awq", "bits": 4, "group_size": -1}
    source = assembled(tensors, config)["x.weight"]
    assert np.array_equal(source.values(0, 40), expected)
    assert np.array_equal(source.values(16, 32), expected[16:32])


@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_the_rest_of_such_a_checkpoint_can_be_packed_too(method: str, tmp_path: Path) -> None:
    values = make(tmp_path / "m", method)
    checkpoint = prepare(str(tmp_path / "m"), quantization="int8")
    assert checkpoint.quantization == f"{method}+int8"
    weights = opened(checkpoint)
    assert weights["lm_head.weight"].layout is Layout.Q8_HALVES
    assert all(weights[name].layout is Layout.Q4_32 for name in values)


@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_it_answers_as_the_same_values_in_floats_do(method: str, tmp_path: Path) -> None:
    from factories.floats import as_floats

    from inferloom.models.loader import load

    make(tmp_path / "m", method)
    checkpoint = prepare(str(tmp_path / "m"))
    model = load(checkpoint, activation_dtype="float32")
    floats = as_floats(checkpoint, tmp_path / "floats")
    config = json.loads((floats / "config.json").read_text())
    del config["quantization_config"]
    (floats / "config.json").write_text(json.dumps(config))
    other = load(prepare(str(floats)), activation_dtype="float32")
    assert model.card.parameters == other.card.parameters
    assert torch.equal(first_logits(model), first_logits(other))


@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_dtype_half_changes_nothing_of_what_comes_in_half(method: str, tmp_path: Path) -> None:
    """`--quantization awq --dtype half`: the rest of such a checkpoint is float16 as it is."""
    from inferloom.models.loader import load

    make(tmp_path / "m", method)
    checkpoint = prepare(str(tmp_path / "m"), quantization=method)
    plain, half = load(checkpoint), load(checkpoint, dtype="float16")
    assert torch.equal(first_logits(plain), first_logits(half))


def first_logits(model: Any) -> torch.Tensor:
    from inferloom.models.batch import RaggedBatch

    model.allocate_kv(4)
    tokens = [5, 9, 200, 31]
    batch = RaggedBatch(
        token_ids=tokens,
        positions=[0, 1, 2, 3],
        starts=[0, 4],
        context_lens=[4],
        page_tables=[[0]],
        logit_rows=[3],
    )
    logits: torch.Tensor = model.forward(batch)
    return logits


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (
            {"quant_method": "bitsandbytes"},
            "a checkpoint quantised with bitsandbytes is not supported: awq and gptq",
        ),
        ({"bits": 8}, "in 8 bits is not supported: only those of 4 bits"),
        ({"group_size": 48}, "in groups of 48 is not supported: groups must be multiples of 32"),
        ({"quant_method": "awq", "version": "gemv"}, "version gemv is not supported: only its version gemm"),
        ({"checkpoint_format": "marlin"}, "format marlin is not supported"),
    ],
)
def test_other_methods_are_refused_with_the_reason(config: dict[str, Any], says: str, tmp_path: Path) -> None:
    make(tmp_path / "m", "gptq")
    path = tmp_path / "m" / "config.json"
    written = json.loads(path.read_text())
    written["quantization_config"] |= config
    path.write_text(json.dumps(written))
    for look in (locate, prepare):
        with pytest.raises(Unsupported, match=says):
            look(str(tmp_path / "m"))


def test_act_order_is_refused_with_the_reason(tmp_path: Path) -> None:
    make(tmp_path / "m", "gptq", desc_act=True)
    assert prepare(str(tmp_path / "m")).quantization == "gptq", "the order is that of the groups all the same"
    file = tmp_path / "m" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.g_idx"] = (
        tensors["model.layers.1.mlp.up_proj.g_idx"].flip(0).contiguous()
    )
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(Unsupported, match=r"columns in model\.layers\.1\.mlp\.up_proj \(desc_act\)"):
        prepare(str(tmp_path / "m"))


@pytest.mark.parametrize("asked", ["awq", "gptq"])
def test_a_method_that_was_named_must_be_the_checkpoints(asked: str, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "float", "llama")
    with pytest.raises(Unsupported, match=r"this checkpoint is not quantised by its config\.json"):
        locate(str(tmp_path / "float"), quantization=asked)
    other = {"awq": "gptq", "gptq": "awq"}[asked]
    make(tmp_path / "m", other)
    with pytest.raises(Unsupported, match=f"this checkpoint is quantised with {other}"):
        locate(str(tmp_path / "m"), quantization=asked)


@pytest.mark.parametrize("damage", ["qzeros", "scales", "dtype", "shape"])
def test_a_damaged_layer_is_named(damage: str, tmp_path: Path) -> None:
    make(tmp_path / "m", "awq")
    file = tmp_path / "m" / "model.safetensors"
    tensors = load_file(file)
    base = "model.layers.0.mlp.up_proj"
    if damage in ("qzeros", "scales"):
        del tensors[f"{base}.{damage}"]
    elif damage == "dtype":
        tensors[f"{base}.qweight"] = tensors[f"{base}.qweight"].to(torch.int64)
    else:
        tensors[f"{base}.scales"] = tensors[f"{base}.scales"][:, :-8].contiguous()
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(InvalidFormat, match=base):
        prepare(str(tmp_path / "m"))
