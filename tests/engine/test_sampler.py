from __future__ import annotations

import math
import random

import msgspec
import pytest
import torch

from inferloom.engine import sampler
from inferloom.engine.draws import Draw, Mask, Sampled
from inferloom.engine.messages import SamplingSpec
from inferloom.engine.penalties import Penalties
from inferloom.engine.randomness import uniform
from inferloom.engine.sampler import sample

SPECS = {
    "free": SamplingSpec(),
    "cold": SamplingSpec(temperature=0.3),
    "top_k": SamplingSpec(top_k=7),
    "wide top_k": SamplingSpec(top_k=300),
    "top_p": SamplingSpec(top_p=0.8, temperature=0.7),
    "wide top_p": SamplingSpec(top_p=0.95, temperature=1.5),
    "top_p of almost nothing": SamplingSpec(top_p=1e-9),
    "min_p": SamplingSpec(min_p=0.1),
    "everything": SamplingSpec(top_k=50, top_p=0.9, min_p=0.02, temperature=1.2),
    "wide top_p with min_p": SamplingSpec(top_p=0.97, min_p=0.01, temperature=2.0),
}


def noise(rows: int, vocab: int, *, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * scale


def draw(row: int = 0, spec: SamplingSpec | None = None, *, logprobs: int = -1) -> Draw:
    return Draw(row=row, sampling=spec or SamplingSpec(), choice=0, position=0, logprobs=logprobs)


def tokens(sampled: list[Sampled]) -> list[int]:
    return [s.token for s in sampled]


def distribution(row: torch.Tensor, spec: SamplingSpec) -> dict[int, float]:
    """The textbook: sort everything, cut, renormalise; in float64."""
    scores = [float(v) / spec.temperature for v in row.double()]
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    weights = {i: math.exp(scores[i] - scores[order[0]]) for i in order}
    if spec.top_k:
        weights = {i: weights[i] for i in order[: spec.top_k]}
    total, mass, kept = sum(weights.values()), 0.0, {}
    for i, weight in weights.items():
        if kept and mass >= spec.top_p * total:
            break
        kept[i] = weight
        mass += weight
    kept = {i: weight for i, weight in kept.items() if weight >= spec.min_p}
    total = sum(kept.values())
    return {i: weight / total for i, weight in kept.items()}


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("vocab", [50, 320, 5000])
def test_only_tokens_of_the_textbook_distribution_are_drawn(name: str, vocab: int) -> None:
    spec = SPECS[name]
    logits = noise(1, vocab)
    expected = distribution(logits[0], spec)
    draws = [Draw(row=0, sampling=spec, choice=c, position=5) for c in range(300)]
    assert set(tokens(sample(logits, draws))) <= set(expected)


@pytest.mark.parametrize("name", SPECS)
def test_tokens_are_drawn_as_often_as_they_should(name: str) -> None:
    spec, count = SPECS[name], 20_000
    logits = noise(1, 120, seed=3, scale=1.5)
    expected = distribution(logits[0], spec)
    seen = [0] * 120
    for start in range(0, count, 1000):
        draws = [
            Draw(row=0, sampling=spec, choice=0, position=position) for position in range(start, start + 1000)
        ]
        for token in tokens(sample(logits, draws)):
            seen[token] += 1
    # Pearson's chi-square over the tokens expected at least five times, the rest in one bin.
    often = [(seen[i], p * count) for i, p in expected.items() if p * count >= 5]
    rest = (
        sum(seen[i] for i, p in expected.items() if p * count < 5),
        sum(p for p in expected.values() if p * count < 5) * count,
    )
    bins = [*often, rest] if rest[1] >= 5 else often
    assert sum(seen) == sum(seen[i] for i in expected)
    chi_square = sum((observed - wanted) ** 2 / wanted for observed, wanted in bins)
    freedom = len(bins) - 1
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom) + 1e-9


def test_a_row_gets_the_same_token_in_any_batch() -> None:
    specs = [*SPECS.values(), SamplingSpec(temperature=0)]
    logits = noise(40, 49_152, seed=1)
    draws = [
        Draw(row=i, sampling=seeded(specs[i % len(specs)], i), choice=i % 3, position=i) for i in range(40)
    ]
    together = tokens(sample(logits.clone(), draws))
    alone = [
        sample(logits[i : i + 1].clone(), [Draw(0, d.sampling, d.choice, d.position)])[0].token
        for i, d in enumerate(draws)
    ]
    assert together == alone
    order = list(range(40))
    random.Random(0).shuffle(order)
    shuffled = tokens(
        sample(
            logits[order].clone(),
            [Draw(at, draws[i].sampling, draws[i].choice, draws[i].position) for at, i in enumerate(order)],
        )
    )
    assert shuffled == [together[i] for i in order]


def seeded(spec: SamplingSpec, seed: int) -> SamplingSpec:
    return msgspec.structs.replace(spec, seed=seed)


def test_ties_fall_the_same_way_in_any_batch() -> None:
    logits = torch.zeros(8, 2000)
    logits[:, ::3] = 1.0  # hundreds of best tokens
    specs = [
        SamplingSpec(top_k=5, seed=1),
        SamplingSpec(top_p=0.5, seed=2),
        SamplingSpec(temperature=0),
        SamplingSpec(seed=4),
    ]
    draws = [draw(i, specs[i % 4]) for i in range(8)]
    together = tokens(sample(logits.clone(), draws))
    assert together == [sample(logits[:1].clone(), [draw(0, specs[i % 4])])[0].token for i in range(8)]


def test_greedy_is_the_first_best_token() -> None:
    logits = noise(5, 300)
    assert (
        tokens(sample(logits.clone(), [draw(i, SamplingSpec(temperature=0)) for i in range(5)]))
        == logits.argmax(-1).tolist()
    )


def test_a_tiny_temperature_is_greedy() -> None:
    logits = noise(3, 300)
    for temperature in (1e-3, 1e-30, 1e-45):
        spec = SamplingSpec(temperature=temperature)
        assert tokens(sample(logits.clone(), [draw(i, spec) for i in range(3)])) == logits.argmax(-1).tolist()


def test_the_token_is_the_one_its_random_number_selects() -> None:
    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log()
    for position in range(50):
        number = uniform(9, choice=1, position=position)
        expected = 0 if number < 0.1 else 1 if number < 0.3 else 2 if number < 0.6 else 3
        assert sample(logits.clone(), [Draw(0, SamplingSpec(seed=9), 1, position)])[0].token == expected


def test_several_draws_share_a_row() -> None:
    logits = noise(2, 100)
    draws = [Draw(1, SamplingSpec(), c, 4) for c in range(20)]
    assert len(set(tokens(sample(logits.clone(), draws)))) > 5


def test_bias_forces_and_forbids() -> None:
    logits = noise(1, 100)
    best = int(logits.argmax())
    forced = SamplingSpec(logit_bias={17: 100.0})
    forbidden = SamplingSpec(temperature=0, logit_bias={best: -100.0})
    assert sample(logits.clone(), [draw(0, forced)])[0].token == 17
    assert sample(logits.clone(), [draw(0, forbidden)])[0].token == int(logits[0].topk(2).indices[1])


def test_masks_hold_for_their_own_rows_alone() -> None:
    logits = noise(3, 100)
    allowed = torch.zeros(1, 100, dtype=torch.bool)
    allowed[0, 42] = True
    greedy = SamplingSpec(temperature=0)
    got = tokens(sample(logits.clone(), [draw(i, greedy) for i in range(3)], Mask([1], allowed)))
    best = logits.argmax(-1).tolist()
    assert got == [best[0], 42, best[2]]


def test_every_path_respects_a_mask() -> None:
    logits = noise(1, 2000)
    allowed = torch.zeros(1, 2000, dtype=torch.bool)
    allowed[0, [3, 700, 1999]] = True
    for spec in SPECS.values():
        for seed in range(20):
            one = draw(0, seeded(spec, seed))
            assert sample(logits.clone(), [one], Mask([0], allowed))[0].token in (3, 700, 1999)


def test_a_row_without_a_distribution_is_told_apart() -> None:
    logits = noise(4, 50)
    logits[1, 7] = torch.nan
    nothing = torch.zeros(1, 50, dtype=torch.bool)
    draws = [draw(0), draw(1), draw(2, SamplingSpec(top_p=0.5)), draw(3, SamplingSpec(temperature=0))]
    got = tokens(sample(logits.clone(), draws, Mask([2], nothing)))
    assert got[1:3] == [-1, -1]
    assert got[0] >= 0
    assert got[3] >= 0


def test_logprobs_are_of_the_unmodified_distribution() -> None:
    logits = noise(2, 100)
    reference = torch.log_softmax(logits.double(), -1)
    spec = SamplingSpec(temperature=0.1, top_k=1, logit_bias={5: 50.0})
    draws = [draw(0, spec, logprobs=3), draw(1, spec, logprobs=0)]
    first, second = sample(logits.clone(), draws)
    assert first.token == second.token == 5
    assert first.logprob is not None
    assert second.logprob is not None
    assert first.logprob[0] == pytest.approx(float(reference[0, 5]), abs=1e-5)
    best = reference[0].topk(3)
    assert [i for i, _ in first.logprob[1]] == best.indices.tolist()
    assert [v for _, v in first.logprob[1]] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert second.logprob == (pytest.approx(float(reference[1, 5]), abs=1e-5), [])
    assert sample(logits.clone(), [draw(0)])[0].logprob is None


@pytest.mark.parametrize("seed", range(5))
def test_penalties_follow_their_formulas(seed: int) -> None:
    rng = random.Random(seed)
    spec = SamplingSpec(
        presence_penalty=rng.uniform(-2, 2),
        frequency_penalty=rng.uniform(-2, 2),
        repetition_penalty=rng.uniform(0.5, 2),
    )
    prompt = [rng.randrange(60) for _ in range(20)]
    output = [rng.randrange(60) for _ in range(100)]
    penalties = Penalties(spec, prompt)
    for token in output:
        penalties.add(token)
    row = noise(1, 60, seed=seed)[0]
    expected = row.clone()
    for token in range(60):
        if token in prompt or token in output:
            expected[token] = (
                expected[token] / spec.repetition_penalty
                if expected[token] > 0
                else expected[token] * spec.repetition_penalty
            )
        if token in output:
            expected[token] -= spec.presence_penalty + spec.frequency_penalty * output.count(token)
    penalties.apply(row)
    torch.testing.assert_close(row, expected)


def test_presence_and_frequency_do_not_look_at_the_prompt() -> None:
    penalties = Penalties(SamplingSpec(presence_penalty=1.0, frequency_penalty=1.0), [1, 2, 3])
    row = noise(1, 10)[0]
    before = row.clone()
    penalties.apply(row)
    assert torch.equal(row, before)


@pytest.mark.parametrize("vocab", [5, 300, 1024, 3001])
def test_rows_and_batches_draw_the_same(vocab: int) -> None:
    """One number selects the same token in both ways, but for a die that falls on the rounding of a sum."""
    rng = random.Random(vocab)
    logits = torch.randn(400, vocab, generator=torch.Generator().manual_seed(vocab)) * 4
    logits[:50, : vocab // 2] = -torch.inf
    draws = [
        Draw(
            row=row,
            sampling=SamplingSpec(
                temperature=rng.choice([0.0, 0.5, 1.0, 5.0, 1e-40]),
                top_k=rng.choice([0, 1, 3, 70]),
                top_p=rng.choice([1.0, 0.95, 0.3, 0.0]),
                min_p=rng.choice([0.0, 0.1]),
                seed=row,
            ),
            choice=0,
            position=3,
        )
        for row in range(400)
    ]
    rows, batch = sampler._choose_rows(logits, draws), sampler._choose_batch(logits, draws)
    # a wide nucleus is drawn in the order of the vocabulary by the one, of the scores by the other
    narrow = [i for i, d in enumerate(draws) if d.sampling.top_p in (0.0, 1.0) or d.sampling.top_k]
    assert sum(rows[i] != batch[i] for i in narrow) <= 1
    native = sampler.native_sampler()
    if native is not None:
        in_one_call = native.draw(logits, range(400), draws)
        assert sum(a != b for a, b in zip(rows, in_one_call, strict=True)) <= 1
