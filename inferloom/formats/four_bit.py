"""AWQ and GPTQ checkpoints: `qweight`, `qzeros` and `scales` of a linear layer as one matrix in Q4_32.

Both keep weights transposed, [in_features, out_features], as `scale * (number - zero)`: the numbers stay as they are, the
minimum is `-zero * scale`, rounded to float16. That is exact where the zero is a power of two (all symmetric files: 8);
otherwise a value is off by at most 2^-11 of `zero * scale`, under a hundredth of a step.

Sources of the two ways to pack: AutoAWQ's `awq/utils/packing_utils.py` and AutoGPTQ's `nn_modules/qlinear`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from inferloom.errors import InvalidFormat, Unsupported
from inferloom.formats.bfloat16 import from_bf16
from inferloom.formats.interleaving import interleave_q4_32, values_of
from inferloom.formats.layout import GROUP, ROWS, Layout
from inferloom.formats.packing_plan import method_of
from inferloom.formats.tensor_sources import FloatSource, PackedSource, TensorSource

Bytes = NDArray[np.uint8]

_PARTS = ("qweight", "qzeros", "scales", "g_idx")
_IN_A_WORD = 8  # numbers of four bits
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # the nibble of a word that holds its first, second … column
_IN_ORDER = tuple(range(_IN_A_WORD))


class FourBitSource(msgspec.Struct, frozen=True):
    """A linear layer. `words` are uint32, [in, out / 8] for AWQ and [in / 8, out] for GPTQ; `zeros` and `scales`
    [groups, out]."""

    name: str
    shape: tuple[int, ...]
    method: str
    words: NDArray[np.uint32]
    zeros: NDArray[np.uint8]
    scales: NDArray[np.float16]
    layout: Layout = Layout.Q4_32
    dtype: str = "U8"

    def values(self, start: int, stop: int) -> NDArray[np.float32]:
        values = values_of(self.content(start, stop), self.layout)
        return np.ascontiguousarray(values[: min(stop, self.shape[0]) - start, : self.shape[1]])

    def content(self, start: int, stop: int) -> Bytes:
        stop = min(stop, self.shape[0])
        numbers = self._numbers(start, stop).reshape(stop - start, -1, 2, GROUP // 2)
        nibbles = numbers[:, :, 0] | numbers[:, :, 1] << 4
        groups = nibbles.shape[1]
        wide = groups // len(self.scales)  # ours in one of theirs
        scales = self.scales[:, start:stop].T
        with np.errstate(over="ignore"):
            minima = -scales * self.zeros[:, start:stop].T.astype(np.float16)
        if not np.isfinite(minima).all():
            raise InvalidFormat(f"{self.name} has scales beyond the range of float16.")
        rows = -(stop - start) % ROWS
        return interleave_q4_32(
            np.pad(nibbles, ((0, rows), (0, 0), (0, 0))),
            np.pad(np.repeat(scales, wide, axis=1), ((0, rows), (0, 0))),
            np.pad(np.repeat(minima, wide, axis=1), ((0, rows), (0, 0))),
        )

    def _numbers(self, start: int, stop: int) -> Bytes:
        """[rows, in_features], one number a byte."""
        if self.method == "gptq":
            along = _unpacked(np.ascontiguousarray(self.words[:, start:stop].T), _IN_ORDER)
            return along.reshape(stop - start, -1)
        words = np.ascontiguousarray(self.words[:, start // _IN_A_WORD : -(-stop // _IN_A_WORD)])
        return np.ascontiguousarray(_unpacked(words, _AWQ_ORDER).reshape(len(words), -1).T[: stop - start])


def _unpacked(words: NDArray[np.uint32], order: tuple[int, ...]) -> Bytes:
    """uint32 [a, b] → its eight numbers [a, b, 8]."""
    return np.stack([(words >> np.uint32(4 * place) & 15).astype(np.uint8) for place in order], axis=-1)


def assembled(
    tensors: Mapping[str, FloatSource | PackedSource], config: Mapping[str, Any]
) -> dict[str, TensorSource]:
    """The checkpoint's tensors with each layer's parts as one matrix `….weight`. Raises `InvalidFormat`, `Unsupported`."""
    method = method_of(config)
    offset = 1 if method == "gptq" and config.get("checkpoint_format", "gptq") == "gptq" else 0
    found: dict[str, TensorSource] = {}
    for name, tensor in tensors.items():
        base, _, part = name.rpartition(".")
        if part == "qweight":
            matrix = _matrix(base, tensors, method, offset)
            found[matrix.name] = matrix
        elif part not in _PARTS or f"{base}.qweight" not in tensors:
            found[name] = tensor
    return found


def _matrix(
    base: str, tensors: Mapping[str, FloatSource | PackedSource], method: str, offset: int
) -> FourBitSource:
    words = _words(base, "qweight", tensors)
    packed_zeros = _words(base, "qzeros", tensors)
    scales = _scales(base, tensors)
    inputs, outputs = words.shape
    inputs, outputs = (inputs * 8, outputs) if method == "gptq" else (inputs, outputs * 8)
    groups = len(scales)
    if scales.shape != (groups, outputs) or packed_zeros.shape != (groups, -(-outputs // 8)) or not groups:
        raise InvalidFormat(
            f"{base}: scales {list(scales.shape)} and qzeros {list(packed_zeros.shape)} do not fit {inputs} x {outputs}."
        )
    if inputs % groups or inputs // groups % GROUP:
        raise InvalidFormat(f"{base}: {groups} groups of {inputs} inputs are no multiples of {GROUP} each.")
    index = tensors.get(f"{base}.g_idx")
    if isinstance(index, FloatSource) and index.data.size:
        _check_order(index, base, inputs // groups)
    order = _AWQ_ORDER if method == "awq" else _IN_ORDER
    zeros = _unpacked(packed_zeros, order).reshape(groups, -1)[:, :outputs] + np.uint8(offset)
    return FourBitSource(f"{base}.weight", (outputs, inputs), method, words, zeros, scales)


def _words(base: str, part: str, tensors: Mapping[str, FloatSource | PackedSource]) -> NDArray[np.uint32]:
    tensor = tensors.get(f"{base}.{part}")
    if not isinstance(tensor, FloatSource) or tensor.dtype not in ("I32", "U32") or len(tensor.shape) != 2:
        raise InvalidFormat(f"{base} has no {part} of 32-bit words in two dimensions.")
    return tensor.numbers(np.uint32)  # type: ignore[return-value]


def _scales(base: str, tensors: Mapping[str, FloatSource | PackedSource]) -> NDArray[np.float16]:
    tensor = tensors.get(f"{base}.scales")
    if not isinstance(tensor, FloatSource) or not tensor.is_float or len(tensor.shape) != 2:
        raise InvalidFormat(f"{base} has no scales of floats in two dimensions.")
    if tensor.dtype == "BF16":
        wide = from_bf16(np.ascontiguousarray(tensor.data).view(np.uint16)).reshape(tensor.shape)
    else:
        wide = tensor.values(0, tensor.shape[0])
    with np.errstate(over="ignore"):
        return wide.astype(np.float16)


def _check_order(index: FloatSource, base: str, width: int) -> None:
    """Act-order files give every input column a group of its own choice; a group of 32 here has one scale."""
    number = np.int64 if index.dtype == "I64" else np.int32
    if (
        index.dtype not in ("I32", "I64")
        or (index.numbers(number).ravel() != np.arange(index.shape[0]) // width).any()
    ):
        raise Unsupported(
            f"the order of columns in {base} (desc_act)",
            "its groups are not consecutive inputs; quantise the model with desc_act = false",
        )
