"""Small GGUF files: random weights of any quantisation, and vocabularies made on the spot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.constants import GGMLQuantizationType as Kind
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

HIDDEN, MIDDLE, HEADS, KV_HEADS, HEAD_DIM, LAYERS, CONTEXT = 64, 96, 4, 2, 16, 2, 128
_TEXT = (
    "The quick brown fox jumps over the lazy dog. It doesn't matter that he'll be there in 1984, "
    "nor that naïve façades cost 12,345 €! Was für ein schöner Tag; ça va très bien. Привет, мир. 中文字 テスト "
    "def add(first, second):\n    return first + second\n\n\nclass Weaver:\n\tpass\r\n"
)


@dataclass
class Vocabulary:
    """What a GGUF file says of its tokenizer."""

    model: str  # "gpt2" or "llama"
    tokens: list[str]
    kinds: list[int]
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    pre: str | None = None
    more: dict[str, Any] = field(default_factory=dict)  # keys below tokenizer.ggml., e.g. add_bos_token


def byte_vocabulary(pre: str | None = "gpt-2", *, size: int = 420, **more: Any) -> Vocabulary:
    """Byte-level BPE trained on a few lines, with two control tokens before everything else."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|begin|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_TEXT] * 4, trainer)
    made = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(made["vocab"], key=made["vocab"].__getitem__)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in made["merges"]]
    kinds = [3, 3] + [1] * (len(tokens) - 2)
    return Vocabulary(
        "gpt2", tokens, kinds, merges, pre=pre, more={"bos_token_id": 0, "eos_token_id": 1, **more}
    )


def piece_vocabulary(*, size: int = 480, **more: Any) -> Vocabulary:
    """SentencePiece-like: pieces with scores, all 256 bytes, spaces as ▁."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=size - 259, show_progress=False)
    tokenizer.train_from_iterator([_TEXT] * 4, trainer)
    learnt = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    pieces = [token for token in learnt if len(token) > 1]
    letters = [token for token in learnt if len(token) == 1]
    special = ["<unk>", "<s>", "</s>"]
    taken = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = special + taken + pieces + letters
    scores = [0.0] * 259 + [-float(rank) for rank in range(len(pieces) + len(letters))]
    kinds = [2, 3, 3] + [6] * 256 + [1] * (len(pieces) + len(letters))
    ids = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    return Vocabulary("llama", tokens, kinds, scores=scores, more={**ids, **more})


def random_tensors(
    vocabulary_size: int, *, seed: int = 0, tied: bool = True, family: str = "llama"
) -> dict[str, NDArray[np.float32]]:
    """Weights of a small decoder under GGUF's names, shapes row-major; Q and K as llama.cpp stores them."""
    random = np.random.default_rng(seed)

    def matrix(*shape: int) -> NDArray[np.float32]:
        return (random.standard_normal(shape) * 0.05).astype(np.float32)

    tensors = {"token_embd.weight": matrix(vocabulary_size, HIDDEN), "output_norm.weight": 1 + matrix(HIDDEN)}
    if not tied:
        tensors["output.weight"] = matrix(vocabulary_size, HIDDEN)
    for layer in range(LAYERS):
        shapes: dict[str, tuple[int, ...]] = {
            "attn_q": (HEADS * HEAD_DIM, HIDDEN),
            "attn_k": (KV_HEADS * HEAD_DIM, HIDDEN),
            "attn_v": (KV_HEADS * HEAD_DIM, HIDDEN),
            "attn_output": (HIDDEN, HEADS * HEAD_DIM),
            "ffn_gate": (MIDDLE, HIDDEN),
            "ffn_up": (MIDDLE, HIDDEN),
            "ffn_down": (HIDDEN, MIDDLE),
        }
        for name, shape in shapes.items():
            tensors[f"blk.{layer}.{name}.weight"] = matrix(*shape)
            if family == "qwen2" and name in ("attn_q", "attn_k", "attn_v"):
                tensors[f"blk.{layer}.{name}.bias"] = matrix(shape[0])
        for name in ("attn_norm", "ffn_norm"):
            tensors[f"blk.{layer}.{name}.weight"] = 1 + matrix(HIDDEN)
        if family == "qwen3":
            for name in ("attn_q_norm", "attn_k_norm"):
                tensors[f"blk.{layer}.{name}.weight"] = 1 + matrix(HEAD_DIM)
    return tensors


def write(
    path: Path,
    *,
    family: str = "llama",
    vocabulary: Vocabulary | None = None,
    tensors: Mapping[str, NDArray[np.float32]] | None = None,
    kind: Kind = Kind.F32,
    keys: Mapping[str, Any] | None = None,
    without: Sequence[str] = (),
) -> Path:
    """Write a GGUF file. Matrices are quantised as `kind`, vectors stay float32; `keys` are added or replaced."""
    vocabulary = vocabulary or byte_vocabulary()
    tensors = tensors if tensors is not None else random_tensors(len(vocabulary.tokens), family=family)
    writer = gguf.GGUFWriter(path, family)
    named: dict[str, Any] = {
        f"{family}.block_count": LAYERS,
        f"{family}.context_length": CONTEXT,
        f"{family}.embedding_length": HIDDEN,
        f"{family}.feed_forward_length": MIDDLE,
        f"{family}.attention.head_count": HEADS,
        f"{family}.attention.head_count_kv": KV_HEADS,
        f"{family}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{family}.rope.freq_base": 10000.0,
        f"{family}.rope.dimension_count": HEAD_DIM,
        "tokenizer.ggml.model": vocabulary.model,
        "tokenizer.ggml.pre": vocabulary.pre,
        "tokenizer.ggml.tokens": vocabulary.tokens,
        "tokenizer.ggml.token_type": vocabulary.kinds,
        "tokenizer.ggml.merges": vocabulary.merges or None,
        "tokenizer.ggml.scores": vocabulary.scores or None,
        **{f"tokenizer.ggml.{key}": value for key, value in vocabulary.more.items()},
        **(keys or {}),
    }
    for key, value in named.items():
        if value is not None and key not in without:
            _add(writer, key, value)
    for name, tensor in tensors.items():
        if tensor.ndim > 1 and kind != Kind.F32:
            writer.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
