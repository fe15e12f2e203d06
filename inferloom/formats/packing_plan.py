"""Which matrices a scheme packs, and in which layout. Decided by names and shapes alone, so that looking up is quick."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from inferloom.errors import Unsupported
from inferloom.formats.layout import DITHERED, GROUP, Layout
from inferloom.formats.screens import is_screen

FLOATS = ("F32", "F16", "BF16", "F64")

# Their errors spread over the whole vocabulary: eight bits also where the rest has four, unless all is asked for.
_WIDE = re.compile(r"(.*\.)?(embed_tokens|wte|embed_in|word_embeddings|lm_head|embed_out)\.weight")
# Few values with much influence (routers), rows that are added as they are (positions), and GPT-2's matrices, which lie
# the other way round.
_KEPT = re.compile(
    r"(.*\.)?(gate|router|shared_expert_gate|wpe|embed_positions|position_embeddings|c_attn|c_proj|c_fc)\.weight"
)
_BITS = {"none": 0, "int8": 8, "int4": 4, "int4-all": 4}
_GENERATORS = ("ForCausalLM", "LMHeadModel")


class Scheme(msgspec.Struct, frozen=True):
    """`bits` that floats are packed into (0: they stay), `method` of a checkpoint that comes quantised ("" for none),
    `everything`: also embedding and output matrix."""

    bits: int = 0
    method: str = ""
    everything: bool = False

    @property
    def name(self) -> str:
        bits = f"int{self.bits}{'-all' if self.everything else ''}" if self.bits else ""
        return "+".join(part for part in (self.method, bits) if part)


def scheme_of(quantization: str, config: Mapping[str, Any], *, method: str) -> Scheme:
    """What is asked of a checkpoint with this config.json; `method` is that of its quantization_config, "" without one.

    Raises `Unsupported` for a quantization that does not fit.
    """
    if quantization in ("awq", "gptq"):
        if quantization != method:
            is_ = f"quantised with {method}" if method else "not quantised by its config.json"
            raise Unsupported(f"quantization {quantization!r}", f"this checkpoint is {is_}")
        return Scheme(method=method)
    if quantization not in _BITS:
        raise Unsupported(f"quantization {quantization!r}", f"there are {', '.join(_BITS)}, awq and gptq")
    bits = _BITS[quantization]
    names = config.get("architectures") or [""]
    if bits and not str(names[0]).endswith(_GENERATORS):
        raise Unsupported(
            f"quantization {quantization!r} for {names[0]}", "only decoders are quantised; leave it out"
        )
    return Scheme(bits, method, quantization == "int4-all")


def method_of(config: Mapping[str, Any]) -> str:
    """The method of a config.json's quantization_config. Raises `Unsupported` with the reason for what is not read."""
    method = str(config.get("quant_method", "unnamed")).lower()
    what = f"a checkpoint quantised with {method}"
    if method not in ("awq", "gptq"):
        raise Unsupported(
            what, "awq and gptq checkpoints of 4 bits are read, and float ones quantised here (int8, int4)"
        )
    bits = config.get("bits", config.get("w_bit"))
    if bits != 4:
        raise Unsupported(f"{what} in {bits} bits", "only those of 4 bits are read")
    size = config.get("group_size", config.get("q_group_size", 128))
    if not isinstance(size, int) or size == 0 or (size > 0 and size % GROUP):
        raise Unsupported(f"{what} in groups of {size}", f"groups must be multiples of {GROUP}")
    if method == "awq" and str(config.get("version", "gemm")).lower() != "gemm":
        raise Unsupported(f"{what}, version {config['version']}", "only its version gemm is read")
    form = config.get("checkpoint_format", "gptq")
    if method == "gptq" and form not in ("gptq", "gptq_v2"):
        raise Unsupported(f"{what}, format {form}", "only the formats gptq and gptq_v2 are read")
    return method


def left_out(name: str, scheme: Scheme, *, tied: bool) -> bool:
    """Whether packing leaves a tensor out: a copy of the embedding that nobody asks for, and the screen of a matrix that is
    packed once more."""
    return (tied and name == "lm_head.weight") or (scheme.everything and is_screen(name))


def target(
    name: str, shape: tuple[int, ...], dtype: str, layout: Layout | None, scheme: Scheme
) -> Layout | None:
    """The layout that a tensor is packed into; None: it stays as it is, float or quantised.

    int8 leaves what is quantised already; int4 packs linear layers of eight bits once more, into four, and int4-all the
    embedding and the output matrix too.
    """
    if not scheme.bits or len(shape) != 2 or not name.endswith(".weight") or _KEPT.fullmatch(name):
        return None
    wide = scheme.bits == 8 or (not scheme.everything and _WIDE.fullmatch(name) is not None)
    if layout is not None:
        return None if wide or layout.bits == 4 else Layout.Q4Z_32
    if dtype not in FLOATS:
        return None
    if not wide:
        return Layout.Q4Z_32
    # Of an output matrix, or an embedding that serves as one, the greatest result may be all that is wanted.
    halves = _WIDE.fullmatch(name) is not None and shape[1] <= DITHERED
    return Layout.Q8_HALVES if halves else Layout.Q8_ROW
