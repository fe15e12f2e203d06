"""A tiny model that a worker serves before it has a real one."""

from __future__ import annotations

import torch

from inferloom.engine.engine import Engine
from inferloom.engine.messages import Generate, SamplingSpec
from inferloom.kernels.reference import ReferenceKernels
from inferloom.models.decoder_weights import read_decoder
from inferloom.models.native import NativeDecoder, supports
from inferloom.models.spec import DecoderSpec
from inferloom.models.tensors import TensorReader
from inferloom.types import ModelCard


def rehearse() -> None:
    """Make a tiny model of zeros and compute a token with it. What this writes to, reference counts above all, is shared with the
    forkserver until then: a load in this process finds it copied already."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 32,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    }
    spec, cpu = DecoderSpec.from_config(config), torch.device("cpu")
    if supports(spec, dtype=torch.bfloat16, device=cpu) is not None:
        return
    shapes = {"embed_tokens": (32, 32), "norm": (32,)}
    for layer in range(2):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            shapes[f"layers.{layer}.self_attn.{name}"] = (32, 32)
        for name in ("gate_proj", "up_proj", "down_proj"):
            shapes[f"layers.{layer}.mlp.{name}"] = (32, 32)
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"layers.{layer}.{name}"] = (32,)
    weights = {
        f"model.{name}.weight": torch.zeros(shape, dtype=torch.bfloat16) for name, shape in shapes.items()
    }
    reader = TensorReader(weights, dtype=torch.float32, stored=None, device=cpu, packed=True)
    card = ModelCard(
        kind="generate",
        architecture=spec.architecture,
        parameters=0,
        format="",
        dtype="bfloat16",
        max_model_len=64,
        vocab_size=32,
    )
    executor = NativeDecoder(spec, read_decoder(spec, reader, ReferenceKernels()), card=card, threads=1)
    engine = Engine(executor, pages=2)
    engine.submit(Generate(1, [1, 2], 2, SamplingSpec(temperature=0)))
    while engine.has_work:
        engine.step()
