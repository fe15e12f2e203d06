"""The decoder's tensors: names and shapes as Llama, Mistral, Qwen2 and Qwen3 checkpoints have them."""

from __future__ import annotations

import torch

from inferloom.kernels.base import Kernels
from inferloom.models.decoder import DecoderWeights, Layer
from inferloom.models.linears import Linear
from inferloom.models.spec import DecoderSpec
from inferloom.models.tensors import TensorReader

# Written by older converters, or tied copies: no part of the arithmetic.
_IGNORED = (r".*rotary_emb\.inv_freq", r".*\.attention\.(masked_)?bias")


def read_decoder(spec: DecoderSpec, reader: TensorReader, kernels: Kernels) -> DecoderWeights:
    """All weights of the model; raises `InvalidFormat` naming a tensor that is missing, misshapen or unknown."""
    hidden, inner = spec.hidden_size, spec.intermediate_size
    q_size, kv_size = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim

    def linear(name: str, out_features: int, in_features: int, *, bias: bool) -> Linear:
        return Linear(
            reader.take(f"{name}.weight", out_features, in_features),
            reader.take(f"{name}.bias", out_features) if bias else None,
            kernels,
        )

    def layer(i: int) -> Layer:
        base = f"model.layers.{i}"
        attention, mlp = f"{base}.self_attn", f"{base}.mlp"
        return Layer(
            input_norm=reader.take(f"{base}.input_layernorm.weight", hidden),
            q=linear(f"{attention}.q_proj", q_size, hidden, bias=spec.qkv_bias),
            k=linear(f"{attention}.k_proj", kv_size, hidden, bias=spec.qkv_bias),
            v=linear(f"{attention}.v_proj", kv_size, hidden, bias=spec.qkv_bias),
            o=linear(f"{attention}.o_proj", hidden, q_size, bias=spec.o_bias),
            head_norm=_head_norm(spec, reader, attention) if spec.qk_norm else None,
            post_norm=reader.take(f"{base}.post_attention_layernorm.weight", hidden),
            gate=linear(f"{mlp}.gate_proj", inner, hidden, bias=spec.mlp_bias),
            up=linear(f"{mlp}.up_proj", inner, hidden, bias=spec.mlp_bias),
            down=linear(f"{mlp}.down_proj", hidden, inner, bias=spec.mlp_bias),
            window=spec.windows[i],
        )

    embedding = reader.take("model.embed_tokens.weight", spec.vocab_size, hidden)
    layers = tuple(layer(i) for i in range(spec.layers))
    norm = reader.take("model.norm.weight", hidden)
    if spec.tied_embeddings:
        head = Linear(embedding, None, kernels)
    else:
        head = linear("lm_head", spec.vocab_size, hidden, bias=False)
    reader.finish(ignore=(*_IGNORED, r"lm_head\.weight") if spec.tied_embeddings else _IGNORED)
    return DecoderWeights(embedding=embedding, layers=layers, norm=norm, head=head)


def _head_norm(spec: DecoderSpec, reader: TensorReader, attention: str) -> torch.Tensor:
    """[heads + kv_heads, head_dim]: the two norms' weights, one row a head, so that one pass does both."""
    q = reader.take(f"{attention}.q_norm.weight", spec.head_dim)
    k = reader.take(f"{attention}.k_norm.weight", spec.head_dim)
    return torch.cat((q.expand(spec.heads, -1), k.expand(spec.kv_heads, -1)))
