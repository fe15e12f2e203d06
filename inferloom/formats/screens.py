"""Screens of output matrices: four dithered bits of each weight, in `Layout.Q4_DITHERED`, beside the matrix that they are of.

A greedy token takes bounds of all logits from them and reads the matrix itself where one of the bounds may be the greatest
(`csrc/kernels/linear_screen.h`).
"""

from __future__ import annotations

from inferloom.formats.layout import DITHERED, Layout
from inferloom.formats.packed_file import Stored

_SUFFIX = ".screen"


def name_of(head: str) -> str:
    """The name of the screen of an output matrix; `head` is without `.weight`."""
    return head + _SUFFIX


def is_screen(name: str) -> bool:
    """Whether a tensor of that name is one."""
    return name.endswith(_SUFFIX)


def screen_of(head: Stored) -> Stored | None:
    """The screen that is kept beside an output matrix. None where it would save little, the layout has one in itself, or the
    matrix has more columns than a dither is made for."""
    if head.layout is not Layout.Q8_32 or head.shape[1] > DITHERED:
        return None
    return Stored(name_of(head.name.removesuffix(".weight")), head.shape, layout=Layout.Q4_DITHERED)
