from __future__ import annotations

import pytest

from inferloom.engine.policy import Adaptive, Eager, Greedy, make_policy


def test_greedy_takes_everything() -> None:
    assert Greedy().prompt_tokens(0) == Greedy().prompt_tokens(500) >= 1 << 20


def test_eager_takes_little_while_anything_decodes() -> None:
    assert (Eager().prompt_tokens(1), Eager().prompt_tokens(0)) == (256, 2048)


def test_adaptive_keeps_a_step_near_its_length_on_any_machine() -> None:
    policy = Adaptive()
    assert policy.prompt_tokens(0) == Adaptive.FIRST
    policy.observe(prompt_tokens=1000, decoding=0, seconds=1.0)  # 1 ms a token
    assert policy.prompt_tokens(decoding=3) == 250
    assert policy.prompt_tokens(decoding=0) == 1000
    for _ in range(50):
        policy.observe(prompt_tokens=1000, decoding=0, seconds=0.1)
    assert policy.prompt_tokens(decoding=3) == pytest.approx(2500, rel=0.01)


def test_adaptive_never_goes_below_the_least_worthwhile_chunk() -> None:
    policy = Adaptive()
    policy.observe(prompt_tokens=128, decoding=0, seconds=60.0)
    assert policy.prompt_tokens(decoding=9) == Adaptive.LEAST


def test_adaptive_learns_nothing_from_steps_without_prompts() -> None:
    policy = Adaptive()
    policy.observe(prompt_tokens=3, decoding=9, seconds=60.0)
    assert policy.cost is None


def test_policies_have_names() -> None:
    assert isinstance(make_policy("adaptive"), Adaptive)
    assert isinstance(make_policy("eager"), Eager)
    assert isinstance(make_policy("greedy"), Greedy)
