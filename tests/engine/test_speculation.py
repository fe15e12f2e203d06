"""How much is drafted: a policy over estimates of acceptance and cost."""

from __future__ import annotations

import pytest

from inferloom.engine.speculation import FRESH, Acceptance, StepCosts, common_length, draft_lengths


def flat(rows: int) -> float:
    return 1.0


def steep(rows: int) -> float:
    return float(rows)


def blocks_of_four(rows: int) -> float:
    return float(-(-rows // 4))


@pytest.mark.parametrize(
    ("chances", "limits", "rows", "room", "seconds", "expected"),
    [
        ([0.9], [8], 1, 64, flat, [8]),  # rows that cost nothing are all used
        ([0.9], [8], 1, 3, flat, [3]),
        ([0.9], [8], 1, 0, flat, [0]),
        ([0.9], [0], 1, 64, flat, [0]),
        ([0.99], [8], 1, 64, steep, [0]),  # rows that cost a step each never pay
        ([0.01], [8], 1, 64, flat, [0]),  # a token in a hundred is not worth the trouble
        ([0.3], [8], 1, 64, blocks_of_four, [3]),  # the first block is paid for
        ([0.99], [7], 1, 64, lambda rows: 1 + 0.1 * (rows - 1), [7]),
        ([0.5], [7], 1, 64, lambda rows: 1 + 0.1 * (rows - 1), [2]),
        ([0.9, 0.2], [4, 4], 2, 4, flat, [4, 0]),  # the likely one gets the rows
        ([0.8, 0.8], [4, 4], 2, 4, flat, [2, 2]),
        ([0.6, 0.6, 0.6, 0.6], [3] * 4, 4, 64, blocks_of_four, [0] * 4),
        ([1.0], [3], 1, 64, lambda rows: 0.0, [3]),  # nothing was measured: try
        ([], [], 3, 64, flat, []),
    ],
)
def test_rows_go_where_they_bring_most(chances, limits, rows, room, seconds, expected) -> None:  # type: ignore[no-untyped-def]
    assert draft_lengths(chances, limits, rows=rows, room=room, seconds=seconds) == expected


@pytest.mark.parametrize(
    ("chances", "most", "seconds", "drafting", "expected"),
    [
        ([0.9], 8, flat, 0.0, 8),
        ([0.7], 8, flat, 0.2, 3),  # (1 + 0.7 + 0.49 + 0.343) / 1.6 is the most per second
        ([0.3], 8, flat, 0.5, 0),  # a round costs more than it brings
        ([0.9, 0.9], 0, flat, 0.0, 0),
        ([0.9] * 8, 4, steep, 0.1, 0),
    ],
)
def test_a_draft_model_drafts_as_long_as_a_round_pays(chances, most, seconds, drafting, expected) -> None:  # type: ignore[no-untyped-def]
    rows = len(chances)
    assert common_length(chances, most=most, rows=rows, seconds=seconds, drafting=drafting) == expected


def test_acceptance_begins_with_the_prior_and_follows_what_happens() -> None:
    acceptance = Acceptance(0.5)
    assert acceptance.chance == 0.5
    for _ in range(10):
        acceptance.observe(4, 4)
    assert acceptance.chance > 0.95
    for _ in range(40):
        acceptance.observe(1, 0)
    assert acceptance.chance < 0.15


def test_what_stands_after_the_first_rejected_token_says_nothing() -> None:
    long, short = Acceptance(), Acceptance()
    long.observe(8, 1)
    short.observe(2, 1)
    assert long.chance == short.chance


def test_costs_between_measured_numbers_of_rows_are_interpolated() -> None:
    costs = StepCosts()
    assert costs.seconds(3) == 0.0
    for _ in range(20):
        costs.observe(1, 1.0)
        costs.observe(5, 3.0)
    assert costs.seconds(1) == pytest.approx(1.0)
    assert costs.seconds(3) == pytest.approx(2.0)
    assert costs.seconds(7) == pytest.approx(4.0)  # the slope goes on


def test_a_lone_measurement_lets_more_rows_be_tried() -> None:
    costs = StepCosts()
    costs.observe(2, 1.0)
    assert 1.0 < costs.seconds(6) < 1.2
    assert 0.9 < costs.seconds(1) < 1.0


def test_a_pause_of_the_machine_moves_a_cost_little_and_is_forgotten() -> None:
    costs = StepCosts()
    for _ in range(20):
        costs.observe(1, 1.0)
    costs.observe(1, 50.0)
    assert costs.seconds(1) < 1.2
    costs.observe(5, 9.0)  # a bad moment to measure five rows
    for _ in range(FRESH + 65):
        costs.observe(1, 1.0)
    assert costs.seconds(5) < 1.2  # so they will be tried again
