"""Taking a checkpoint's tensors one by one, and complaining by name about what is missing, misshapen or left over."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch

from inferloom.errors import InvalidFormat
from inferloom.formats.layouts import Layout, PackedTensor, dequantise
from inferloom.formats.screens import is_screen, name_of

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_KERNEL_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


class TensorReader:
    """Hands out tensors in the dtype the model computes in: the mapped view itself where that is already so.

    `stored` is the dtype the operator asked the weights to have (None: the checkpoint's): values are rounded to it first;
    quantised matrices keep their grid. `packed`: the kernels read every layout, so `take_matrix` hands out what the file
    has; otherwise quantised matrices are dequantised and floats converted. `screened`: the executor looks for the greatest
    logit by a screen of the output matrix.
    """

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor | PackedTensor],
        *,
        dtype: torch.dtype,
        stored: torch.dtype | None,
        device: torch.device,
        prefix: str = "",
        packed: bool = False,
        screened: bool = False,
    ) -> None:
        self.parameters = 0
        self.weight_bytes = 0
        self._tensors = tensors
        self.dtype = dtype
        self._stored = stored
        self._device = device
        self._prefix = prefix
        self._packed = packed
        self._screened = screened
        self._taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._tensors

    def take(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The tensor of that name and shape, in `dtype` (None: the compute dtype), on the model's device."""
        tensor = self._find(name, shape)
        wanted = dtype or self.dtype
        if isinstance(tensor, PackedTensor):
            tensor = dequantise(tensor, wanted).to(self._device)
        else:
            tensor = self._rounded(tensor).to(self._device, wanted)
        self.weight_bytes += tensor.nbytes
        return tensor

    def take_matrix(self, name: str, rows: int, columns: int) -> torch.Tensor | PackedTensor:
        """A weight matrix or embedding. For kernels that read every layout: the view of the file as it is, packed or in
        its own float dtype (float32, float16 or bfloat16; rounded to `stored` where that is set). Otherwise as `take`."""
        if not self._packed:
            return self.take(name, rows, columns)
        tensor = self._find(name, (rows, columns))
        if not isinstance(tensor, PackedTensor):
            tensor = self._rounded(tensor)
            if tensor.dtype not in _KERNEL_FLOATS:
                tensor = tensor.to(self.dtype)
        self.weight_bytes += tensor.nbytes
        return tensor

    def take_screen(self, head: str, rows: int, columns: int) -> PackedTensor | None:
        """The screen of the output matrix `head`, if there is one and the executor wants it."""
        name = name_of(head)
        if not self._screened or name not in self:
            return None
        screen = self._tensors[self._prefix + name]
        fits = tuple(screen.shape) == (rows, columns)
        if not (isinstance(screen, PackedTensor) and screen.layout is Layout.Q4_DITHERED and fits):
            raise InvalidFormat(
                f"the tensor {self._prefix}{name} is no screen of a matrix of {rows} x {columns}"
            )
        self.weight_bytes += screen.nbytes
        return screen

    def _find(self, name: str, shape: tuple[int, ...]) -> torch.Tensor | PackedTensor:
        full = self._prefix + name
        try:
            tensor = self._tensors[full]
        except KeyError:
            raise InvalidFormat(f"the tensor {full} {list(shape)} is missing from the checkpoint") from None
        if tuple(tensor.shape) != shape:
            raise InvalidFormat(
                f"the tensor {full} has shape {list(tensor.shape)}, config.json asks for {list(shape)}"
            )
        if not isinstance(tensor, PackedTensor) and tensor.dtype not in _FLOATS:
            raise InvalidFormat(
                f"the tensor {full} is {str(tensor.dtype).removeprefix('torch.')}, not a float type"
            )
        if full not in self._taken:
            self._taken.add(full)
            self.parameters += tensor.numel()
        return tensor

    def _rounded(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if self._stored is None else tensor.to(self._stored)

    def finish(self, *, ignore: Sequence[str] = ()) -> None:
        """Raise `InvalidFormat` if tensors are left that no part of the model asked for; `ignore` holds patterns."""
        left = sorted(
            name
            for name in self._tensors
            if name not in self._taken
            and not is_screen(name)
            and not any(re.fullmatch(pattern, name) for pattern in ignore)
        )
        if left:
            more = f" and {len(left) - 5} more" if len(left) > 5 else ""
            raise InvalidFormat(
                f"the checkpoint holds tensors its config.json does not ask for: {', '.join(left[:5])}{more}"
            )


def stored_dtype(tensors: Mapping[str, torch.Tensor | PackedTensor]) -> torch.dtype:
    """The dtype most elements of the checkpoint's float tensors have."""
    counts: dict[torch.dtype, int] = {}
    for name in tensors:
        tensor = tensors[name]
        if isinstance(tensor, PackedTensor):
            continue
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel()
    if not counts:
        raise InvalidFormat("the checkpoint holds no tensors")
    return max(counts, key=lambda dtype: counts[dtype])
