from __future__ import annotations

from inferloom.engine.randomness import uniform


def test_a_number_depends_on_seed_choice_and_position_and_nothing_else() -> None:
    assert uniform(1, choice=2, position=3) == uniform(1, choice=2, position=3)
    numbers = {uniform(s, choice=c, position=p) for s in range(20) for c in range(20) for p in range(20)}
    assert len(numbers) == 8000


def test_any_64_bit_seed_will_do() -> None:
    for seed in (0, -1, 2**63, 2**64 - 1, -(2**63)):
        assert 0 <= uniform(seed, choice=0, position=0) < 1
    assert uniform(-1, choice=0, position=0) == uniform(2**64 - 1, choice=0, position=0)


def test_numbers_are_spread_evenly() -> None:
    bins = [0] * 20
    for seed in range(40):
        for position in range(500):
            bins[int(uniform(seed, choice=0, position=position) * 20)] += 1
    chi_square = sum((count - 1000) ** 2 / 1000 for count in bins)
    assert chi_square < 43.8  # 19 degrees of freedom, p = 0.001


def test_neighbours_are_uncorrelated() -> None:
    pairs = [(uniform(7, choice=0, position=p), uniform(7, choice=0, position=p + 1)) for p in range(20000)]
    covariance = sum((a - 0.5) * (b - 0.5) for a, b in pairs) / len(pairs)
    assert abs(covariance * 12) < 0.025
