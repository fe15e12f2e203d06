"""Where a family's checkpoint keeps each part of a decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Names:
    """Modules of a checkpoint; their tensors end in `.weight` and `.bias`. Names of a layer's parts are relative to it.

    The defaults are Llama's, which most families share. A part that the spec does not ask for is not looked up.
    """

    prefixes: tuple[str, ...] = (
        "",
    )  # the first that leads to the embedding stands before all names but the head's
    embedding: str = "model.embed_tokens"
    positions: str = ""  # learned
    layer: str = "model.layers.{}"
    norm: str = "model.norm"
    heads: tuple[str, ...] = ("lm_head",)  # the first one that is there
    input_norm: str = "input_layernorm"
    attention_out_norm: str = ""
    mlp_norm: str = "post_attention_layernorm"
    mlp_out_norm: str = ""
    q: str = "self_attn.q_proj"
    k: str = "self_attn.k_proj"
    v: str = "self_attn.v_proj"
    qkv: str = ""  # in place of the three
    # "rows": all queries, all keys, all values; "heads": for each head its query, key and value, one after the other
    qkv_order: Literal["rows", "heads"] = "rows"
    o: str = "self_attn.o_proj"
    q_norm: str = "self_attn.q_norm"
    k_norm: str = "self_attn.k_norm"
    gate: str = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    gate_up: str = ""  # in place of the two: the gate's rows, then up's
    down: str = "mlp.down_proj"
    transposed: bool = False  # matrices of the layers are [in_features, out_features]
    router: str = ""
    expert: str = ""  # with the expert's number; gate_proj, up_proj and down_proj are in it
    shared_expert: str = ""
    shared_gate: str = ""
    # Buffers and tied copies that older converters wrote: no part of the arithmetic. Regular expressions.
    ignored: tuple[str, ...] = (r".*rotary_emb\.inv_freq", r".*\.(attn|attention)\.(masked_)?bias")
