from __future__ import annotations

import subprocess
import sys

import pytest

# In a process of its own: the memory of one that runs tests is nobody's business.
TIDIED = """
import mmap
from inferloom.worker import huge_pages
huge_pages._MADV_COLLAPSE = {advice}
block = mmap.mmap(-1, 16 << 20)
block.write(bytes(range(256)) * (16 << 12))
before = bytes(block)
assert any(end - begin >= 8 << 20 for begin, end in huge_pages._ranges())
huge_pages.collapse_heap()
assert block[:] == before
"""


@pytest.mark.parametrize("advice", ["25", "0x7FFF"], ids=["collapse", "a kernel that does not know it"])
def test_memory_reads_as_before_once_it_lies_in_huge_pages(advice: str) -> None:
    program = TIDIED.replace("{advice}", advice)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
