"""Ids of requests and answers: unique, not secret."""

from __future__ import annotations

import os
import random

_draw = random.Random(
    os.urandom(32)
).getrandbits  # asking the kernel for every id would cost a system call each


def unique() -> str:
    """96 random bits as 24 hexadecimal digits."""
    return f"{_draw(96):024x}"
