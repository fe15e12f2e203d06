from __future__ import annotations

from inferloom.runners.budget import most_kv_bytes, ram_bytes


def test_pages_take_no_more_than_the_share_of_memory_that_may_be_used_and_8_gib() -> None:
    assert most_kv_bytes(utilization=0.5, ram=4 << 30) == 2 << 30
    assert most_kv_bytes(utilization=0.85, ram=64 << 30) == 8 << 30


def test_the_machines_memory_is_known() -> None:
    assert ram_bytes() > 64 << 20
