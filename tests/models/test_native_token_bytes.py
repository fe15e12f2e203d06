"""What a token reads of the weights, as the card says it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import gguf
from gguf.constants import GGMLQuantizationType as Kind

from inferloom.formats.checkpoint import Checkpoint
from inferloom.formats.layouts import Layout, PackedTensor
from inferloom.formats.prepare import prepare
from inferloom.formats.weights import open_weights
from inferloom.models.batch import Executor
from inferloom.models.loader import load

Make = Callable[..., Checkpoint]


def loaded(source: str, quantization: str = "none") -> tuple[int, dict[str, torch.Tensor | PackedTensor]]:
    """`token_bytes` of the card, and the matrices of the checkpoint."""
    checkpoint = prepare(source, quantization=quantization)
    executor = load(checkpoint)
    assert isinstance(executor, Executor)
    found = {name: tensor for name, tensor in open_weights(checkpoint).items() if len(tensor.shape) == 2}
    return executor.card.token_bytes, found


@pytest.mark.parametrize("tied", [True, False])
def test_all_matrices_but_an_embedding_of_its_own(tied: bool, checkpoint_of: Make) -> None:
    checkpoint = checkpoint_of("llama", dtype=torch.bfloat16, tie_word_embeddings=tied)
    counted, matrices = loaded(checkpoint.folder)
    assert counted == sum(
        tensor.nbytes for name, tensor in matrices.items() if tied or name != "model.embed_tokens.weight"
    )


def test_half_of_an_output_matrix_in_halves(checkpoint_of: Make) -> None:
    counted, matrices = loaded(checkpoint_of("llama", dtype=torch.bfloat16).folder, "int4")
    head = matrices["model.embed_tokens.weight"]
    assert isinstance(head, PackedTensor) and head.layout is Layout.Q8_HALVES
    layers = sum(tensor.nbytes for tensor in matrices.values()) - head.nbytes
    assert layers + head.nbytes / 2 < counted < layers + head.nbytes * 0.53


def test_a_screen_in_place_of_its_matrix(tmp_path: Path) -> None:
    vocabulary = gguf.byte_vocabulary()
    tensors = gguf.random_tensors(len(vocabulary.tokens))
    path = gguf.write(tmp_path / "m.gguf", vocabulary=vocabulary, tensors=tensors, kind=Kind.Q8_0)
    counted, matrices = loaded(str(path))
    head = matrices["model.embed_tokens.weight"]
    assert counted == sum(tensor.nbytes for tensor in matrices.values()) - head.nbytes


def test_of_a_mixture_the_experts_that_a_token_goes_to(checkpoint_of: Make) -> None:
    sizes: dict[str, Any] = {"num_experts": 8, "num_experts_per_tok": 2}
    counted, matrices = loaded(checkpoint_of("qwen3_moe", dtype=torch.bfloat16, **sizes).folder)
    experts = sum(tensor.nbytes for name, tensor in matrices.items() if ".experts." in name)
    others = sum(tensor.nbytes for name, tensor in matrices.items() if ".experts." not in name)
    assert experts > 0
    embedding = matrices["model.embed_tokens.weight"].nbytes if "lm_head.weight" in matrices else 0
    assert counted == others - embedding + experts // 4
