from __future__ import annotations

from inferloom.runners.sampling import fresh_seed, resolve
from inferloom.text.tokenizer_files import GenerationDefaults
from inferloom.types import Sampling

DEFAULTS = GenerationDefaults(temperature=0.6, top_p=0.95, top_k=20, min_p=0.1, repetition_penalty=1.1)


def test_what_the_request_says_wins() -> None:
    spec = resolve(
        Sampling(temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, repetition_penalty=1.0), DEFAULTS, seed=7
    )
    assert (spec.temperature, spec.top_p, spec.top_k, spec.min_p, spec.repetition_penalty) == (0, 1, 0, 0, 1)


def test_the_checkpoint_fills_in() -> None:
    spec = resolve(Sampling(), DEFAULTS, seed=7)
    assert (spec.temperature, spec.top_p, spec.top_k, spec.min_p, spec.repetition_penalty) == (
        0.6,
        0.95,
        20,
        0.1,
        1.1,
    )


def test_where_neither_says_anything_it_is_openais_default() -> None:
    spec = resolve(Sampling(), GenerationDefaults(), seed=7)
    assert (spec.temperature, spec.top_p, spec.top_k, spec.min_p, spec.repetition_penalty) == (1, 1, 0, 0, 1)
    assert (spec.presence_penalty, spec.frequency_penalty, spec.logit_bias, spec.seed) == (0, 0, None, 7)


def test_a_seed_of_any_sign_becomes_64_bits() -> None:
    assert resolve(Sampling(seed=-1), GenerationDefaults(), seed=7).seed == 2**64 - 1
    assert resolve(Sampling(seed=3), GenerationDefaults(), seed=7).seed == 3


def test_requests_without_a_seed_differ_by_number_start_and_configuration() -> None:
    seeds = {
        fresh_seed(42, b"a", 1),
        fresh_seed(42, b"a", 2),
        fresh_seed(42, b"b", 1),
        fresh_seed(43, b"a", 1),
    }
    assert len(seeds) == 4
    assert fresh_seed(42, b"a", 1) in seeds
