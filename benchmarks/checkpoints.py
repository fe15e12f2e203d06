"""Checkpoints with the shape of a real model and random bf16 weights: speed does not depend on what weights say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from inferloom.formats.checkpoint import Checkpoint

QWEN3_06B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "max_window_layers": 28,
    "use_sliding_window": False,
    "sliding_window": None,
    "attention_bias": False,
    "tie_word_embeddings": True,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
}
SMOLLM2_135M: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

LLAMA32_1B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}
SHAPES = {"smollm2-135m-shape": SMOLLM2_135M, "qwen3-0.6b-shape": QWEN3_06B, "llama3.2-1b-shape": LLAMA32_1B}


def make_qwen3_06b_shape(folder: Path) -> Checkpoint:
    """1.2 GB; made once, found again on the next call."""
    return make_shape(folder, QWEN3_06B)


def make_smollm2_shape(folder: Path) -> Checkpoint:
    """270 MB, for machines without the real file."""
    return make_shape(folder, SMOLLM2_135M)


def make_shape(folder: Path, config: dict[str, Any]) -> Checkpoint:
    """Write config.json, model.safetensors (bf16, normal, standard deviation 0.02, norms 1) and a byte-level tokenizer."""
    weights = folder / "model.safetensors"
    if not weights.exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config | {"torch_dtype": "bfloat16"}, indent=1))
        generator = torch.Generator().manual_seed(0)
        tensors = {name: _random(shape, generator) for name, shape in _shapes(config)}
        partial = weights.with_suffix(".partial")
        save_file(tensors, partial, metadata={"format": "pt"})
        partial.rename(weights)
        _write_tokenizer(folder)
    return Checkpoint(
        source=str(folder),
        name=folder.name,
        folder=str(folder.resolve()),
        weights=(str(weights.resolve()),),
        format="safetensors",
    )


def _random(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)


def _shapes(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, inner, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    yield "model.norm.weight", (hidden,)
    for i in range(config["num_hidden_layers"]):
        base = f"model.layers.{i}"
        yield f"{base}.input_layernorm.weight", (hidden,)
        yield f"{base}.post_attention_layernorm.weight", (hidden,)
        yield f"{base}.self_attn.q_proj.weight", (q, hidden)
        yield f"{base}.self_attn.k_proj.weight", (kv, hidden)
        yield f"{base}.self_attn.v_proj.weight", (kv, hidden)
        yield f"{base}.self_attn.o_proj.weight", (hidden, q)
        if config["model_type"] == "qwen3":
            yield f"{base}.self_attn.q_norm.weight", (dim,)
            yield f"{base}.self_attn.k_norm.weight", (dim,)
        yield f"{base}.mlp.gate_proj.weight", (inner, hidden)
        yield f"{base}.mlp.up_proj.weight", (inner, hidden)
        yield f"{base}.mlp.down_proj.weight", (hidden, inner)


def _write_tokenizer(folder: Path) -> None:
    """Every byte is a token: enough to serve text, and ids stay within any vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False})
    )
