"""Loading: what the card says, what is mapped, and the sentences of what goes wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from factories.checkpoints import make_checkpoint
from safetensors.torch import load_file, save_file

from inferloom.errors import InvalidFormat, LoadFailed, Unsupported
from inferloom.formats.checkpoint import Checkpoint
from inferloom.models.batch import Executor, RaggedBatch
from inferloom.models.loader import load

Make = Callable[..., Checkpoint]


def executor_of(checkpoint: Checkpoint, **options: Any) -> Executor:
    executor = load(checkpoint, executor="reference", **options)
    assert isinstance(executor, Executor)
    return executor


def change_tensors(checkpoint: Checkpoint, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(checkpoint.weights[0]).items()}
    change(tensors)
    save_file(tensors, checkpoint.weights[0], metadata={"format": "pt"})


def test_the_card_says_what_the_checkpoint_is(checkpoint_of: Make) -> None:
    checkpoint = checkpoint_of("llama", dtype=torch.bfloat16)
    card = executor_of(checkpoint).card
    tensors = load_file(checkpoint.weights[0])
    assert card.parameters == sum(tensor.numel() for tensor in tensors.values())
    assert card.weight_bytes == sum(tensor.nbytes for tensor in tensors.values())
    assert (card.kind, card.architecture, card.dtype) == ("generate", "LlamaForCausalLM", "bfloat16")
    assert (card.max_model_len, card.vocab_size, card.has_chat_template) == (512, 320, True)


def test_weights_in_the_compute_dtype_are_mapped_not_copied(checkpoint_of: Make) -> None:
    executor: Any = executor_of(checkpoint_of("llama", dtype=torch.bfloat16))
    address = executor._weights.embedding.data_ptr()
    with open("/proc/self/maps") as maps:
        held = [line for line in maps if _covers(line, address)]
    assert len(held) == 1 and held[0].rstrip().endswith("model.safetensors")


def _covers(line: str, address: int) -> bool:
    low, high = (int(bound, 16) for bound in line.split()[0].split("-"))
    return low <= address < high


def test_max_model_len_can_be_lowered_and_not_raised(checkpoint_of: Make) -> None:
    checkpoint = checkpoint_of("llama")
    assert load(checkpoint, max_model_len=100).card.max_model_len == 100
    with pytest.raises(LoadFailed, match="max_model_len is 1000, but the checkpoint's positions end at 512"):
        load(checkpoint, max_model_len=1000)


def test_dtype_rounds_the_weights_before_they_are_computed_with(checkpoint_of: Make) -> None:
    checkpoint = checkpoint_of("llama")
    rounded: Any = executor_of(checkpoint, dtype="bfloat16", activation_dtype="float32")
    exact: Any = executor_of(checkpoint, activation_dtype="float32")
    assert torch.equal(rounded._weights.embedding, exact._weights.embedding.bfloat16().float())
    assert not torch.equal(rounded._weights.embedding, exact._weights.embedding)


def test_float16_computes(checkpoint_of: Make) -> None:
    executor = executor_of(checkpoint_of("qwen3"), activation_dtype="float16")
    executor.allocate_kv(2)
    logits = executor.forward(RaggedBatch([5, 6], [0, 1], [0, 2], [2], [[1]], [1]))
    assert executor.card.dtype == "float16" and logits.isfinite().all()


def test_an_unknown_dtype_is_refused(checkpoint_of: Make) -> None:
    with pytest.raises(Unsupported, match=r"activation_dtype 'int4'.*float32, bfloat16, float16"):
        load(checkpoint_of("llama"), activation_dtype="int4")


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("cuda:63", "device cuda:63 is not available: .*CUDA device"),
        ("warp:0", "device warp:0 is not available: no device type of that name"),
        ("meta", "device meta is not available: this engine runs on cpu and cuda:N"),
    ],
)
def test_a_device_that_is_not_there_is_a_clear_error(device: str, words: str, checkpoint_of: Make) -> None:
    with pytest.raises(LoadFailed, match=words):
        load(checkpoint_of("llama"), device=device)


def test_a_missing_tensor_is_named_with_its_shape(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path, "llama")
    change_tensors(checkpoint, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(
        InvalidFormat, match=r"tensor model.layers.1.mlp.up_proj.weight \[96, 64\] is missing"
    ):
        load(checkpoint)


def test_a_tensor_of_the_wrong_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path, "llama")
    change_tensors(checkpoint, lambda tensors: tensors.update({"model.norm.weight": torch.ones(63)}))
    with pytest.raises(
        InvalidFormat, match=r"model.norm.weight has shape \[63\], config.json asks for \[64\]"
    ):
        load(checkpoint)


def test_a_tensor_of_whole_numbers_is_refused(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path, "llama")
    change_tensors(
        checkpoint, lambda tensors: tensors.update({"model.norm.weight": torch.ones(64, dtype=torch.int8)})
    )
    with pytest.raises(InvalidFormat, match=r"model.norm.weight is int8, not a float type"):
        load(checkpoint)


def test_tensors_that_nothing_asks_for_are_named(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path, "llama")
    change_tensors(
        checkpoint, lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(64)})
    )
    with pytest.raises(InvalidFormat, match=r"does not ask for: model.layers.0.self_attn.q_proj.bias"):
        load(checkpoint)


def test_buffers_of_older_converters_and_a_tied_head_are_no_error(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path, "llama")
    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
        "lm_head.weight": torch.ones(320, 64),
    }
    change_tensors(checkpoint, lambda tensors: tensors.update(extra))
    assert load(checkpoint).card.parameters == sum(
        tensor.numel() for name, tensor in load_file(checkpoint.weights[0]).items() if name not in extra
    )


def test_weights_in_several_files_are_read_as_one(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path, "llama")
    tensors = load_file(checkpoint.weights[0])
    names = sorted(tensors)
    parts = []
    for i, chosen in enumerate((names[::2], names[1::2])):
        parts.append(str(tmp_path / f"part-{i}.safetensors"))
        save_file({name: tensors[name] for name in chosen}, parts[-1])
    split = msgspec.structs.replace(checkpoint, weights=tuple(parts))
    assert load(split).card == load(checkpoint).card


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "config.json is missing from"), ("{", "cannot be read"), ("[]", "holds no JSON object")],
)
def test_an_unreadable_config_is_named(content: str | None, words: str, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path, "llama")
    path = tmp_path / "config.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(InvalidFormat, match=words):
        load(checkpoint)


def test_an_unknown_architecture_is_refused_with_what_is_known(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path, "llama")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": ["OracleForCausalLM"]}))
    with pytest.raises(
        Unsupported,
        match=r"OracleForCausalLM is not supported: this engine runs LlamaForCausalLM, .*BertModel",
    ):
        load(checkpoint)
