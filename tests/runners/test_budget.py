from __future__ import annotations

from inferloom.runners.budget import kv_budget, ram_bytes


def test_models_share_what_may_be_used_and_none_gets_more_than_2_gib() -> None:
    assert kv_budget(utilization=0.5, ram=4 << 30, models=4) == 512 << 20
    assert kv_budget(utilization=0.85, ram=64 << 30, models=1) == 2 << 30


def test_the_machines_memory_is_known() -> None:
    assert ram_bytes() > 64 << 20
