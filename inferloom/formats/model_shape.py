"""What config.json says of a model's sizes, as far as bytes depend on them. Unlike `models.families`, which must say what a
model computes, nothing here refuses: what is unknown is guessed as most models have it. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from inferloom.errors import InvalidFormat

ENCODERS = ("BertModel", "RobertaModel", "XLMRobertaModel")
_TOKENS = 32  # of one page
_SCALES = 2 * _TOKENS * 4  # bytes of an int8 page's scales, for each head (`csrc/kernels/kv_layout.h`)


class _Family(msgspec.Struct, frozen=True):
    """What a family means where config.json says nothing; None: as many as heads, hidden_size / heads."""

    kv_heads: int | None = None
    head_dim: int | None = None
    positions: int = 2048


# As in `models.families`, which a test holds against it.
_FAMILIES = {
    "LlamaForCausalLM": _Family(),
    "MistralForCausalLM": _Family(8, positions=131_072),
    "Qwen2ForCausalLM": _Family(32, positions=32_768),
    "Qwen3ForCausalLM": _Family(32, 128, 32_768),
    "Qwen2MoeForCausalLM": _Family(16, positions=32_768),
    "Qwen3MoeForCausalLM": _Family(4, positions=32_768),
    "Gemma2ForCausalLM": _Family(4, 256, 8192),
    "Gemma3ForCausalLM": _Family(4, 256, 131_072),
    "GraniteForCausalLM": _Family(),
    "SmolLM3ForCausalLM": _Family(4, positions=32_768),
    "Olmo2ForCausalLM": _Family(),
    "Phi3ForCausalLM": _Family(positions=4096),
    "GPT2LMHeadModel": _Family(positions=1024),
    "GPTNeoXForCausalLM": _Family(),
}
_HIDDEN = ("hidden_size", "n_embd", "d_model", "dim")
_INNER = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "d_ff")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "multi_query_group_num")
# As `models.fallback` looks for it.
_POSITIONS = (
    "max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length", "n_ctx",
)  # fmt: skip
_MANY = 1 << 20
# Every head has keys and values of its own, whatever else config.json names.
_ALL_HEADS = ("GPT2LM", "GPTNeo", "GPTJ", "OPT", "Bloom", "CodeGen", "BioGpt", "XGLM")


class ModelShape(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes in elements, positions in tokens. `key_dim` and `value_dim` are those of one head."""

    architecture: str
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    vocab: int
    positions: int
    ropes: int  # tables of rotary positions, at most
    own: bool  # whether this engine has a decoder of its own for it
    stepped: bool  # whether the native step knows it: see `models.native.supports`

    @property
    def embeds(self) -> bool:
        """Whether it is an encoder, which keeps no keys and values."""
        return self.architecture in ENCODERS

    def page_bytes(self, item: int) -> int:
        """Bytes of one KV page over all layers, with elements of `item` bytes."""
        return self.layers * self.kv_heads * _TOKENS * (self.key_dim + self.value_dim) * item

    def int8_page_bytes(self) -> int:
        """The same with int8 elements and their scales."""
        return self.page_bytes(1) + self.layers * self.kv_heads * _SCALES


def shape_of(config: Mapping[str, Any]) -> ModelShape:
    """From a parsed config.json. Raises `InvalidFormat` where it lacks what no model can be without."""
    names = config.get("architectures")
    architecture = str(names[0]) if isinstance(names, list) and names else ""
    inner = config.get("text_config")
    if isinstance(inner, Mapping):  # models of several media keep the decoder's sizes in a table of their own
        config = {**config, **inner}
    hidden, layers, heads = (_size(config, keys) for keys in (_HIDDEN, _LAYERS, _HEADS))
    family = _FAMILIES.get(architecture)
    known = family or _Family()
    head_dim = _number(config, "head_dim") or known.head_dim or max(1, hidden // heads)
    key_dim, value_dim = head_dim, head_dim
    kv_heads = _kv_heads(config, architecture, heads) or known.kv_heads or heads
    if family is None and _number(config, "kv_lora_rank"):  # latent attention: keys and values of all heads
        kv_heads = heads
        key_dim = (_number(config, "qk_nope_head_dim") or 0) + (_number(config, "qk_rope_head_dim") or 0)
        value_dim = _number(config, "v_head_dim") or head_dim
    return ModelShape(
        architecture=architecture,
        hidden=hidden,
        inner=_first(config, _INNER) or 4 * hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        key_dim=key_dim,
        value_dim=value_dim,
        vocab=_number(config, "vocab_size") or 0,
        positions=_positions(config, architecture, known),
        ropes=2 if architecture == "Gemma3ForCausalLM" else 0 if architecture == "GPT2LMHeadModel" else 1,
        own=family is not None,
        stepped=family is not None
        and not _has_experts(config, architecture)
        and head_dim in range(16, 257, 16),
    )


def _kv_heads(config: Mapping[str, Any], architecture: str, heads: int) -> int | None:
    if architecture.startswith(_ALL_HEADS):
        return heads
    if architecture == "FalconForCausalLM" and not config.get("new_decoder_architecture"):
        return 1 if config.get("multi_query", True) else heads
    found = _first(config, _KV_HEADS)
    return 1 if found is None and config.get("multi_query") else found


def _positions(config: Mapping[str, Any], architecture: str, family: _Family) -> int:
    if architecture in ENCODERS:  # RoBERTa numbers positions from padding_idx + 1
        pad = config.get("pad_token_id")
        first = 0 if architecture == "BertModel" else (1 if pad is None else int(pad)) + 1
        return (_number(config, "max_position_embeddings") or 512) - first
    return _first(config, _POSITIONS) or family.positions


def _has_experts(config: Mapping[str, Any], architecture: str) -> bool:
    if not architecture.endswith("MoeForCausalLM") or config.get("num_experts") == 0:
        return False
    dense, step = config.get("mlp_only_layers") or [], _number(config, "decoder_sparse_step") or 1
    layers = range(_size(config, _LAYERS))
    return any(layer not in dense and (layer + 1) % step == 0 for layer in layers)


def _size(config: Mapping[str, Any], keys: tuple[str, ...]) -> int:
    found = _first(config, keys)
    if found is None:
        raise InvalidFormat(f"config.json: {keys[0]} must be a positive whole number")
    return found


def _first(config: Mapping[str, Any], keys: tuple[str, ...]) -> int | None:
    return next((value for value in (_number(config, key) for key in keys) if value), None)


def _number(config: Mapping[str, Any], key: str) -> int | None:
    """Such a number where it is one that a model can have."""
    value = config.get(key)
    usable = isinstance(value, int) and not isinstance(value, bool) and 0 < value < _MANY * _MANY
    return value if usable else None
