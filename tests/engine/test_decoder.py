"""The engine over a real decoder: 500 requests of all shapes in one engine give what each gives alone."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from engine.driving import Answers, assert_all_pages_free, drive
from factories.checkpoints import make_checkpoint

from inferloom.engine.engine import Engine
from inferloom.engine.messages import Generate, SamplingSpec
from inferloom.formats.checkpoint import Checkpoint
from inferloom.models.batch import Executor
from inferloom.models.loader import load

REQUESTS = 500


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder: Path = tmp_path_factory.mktemp("models") / "llama"
    return make_checkpoint(folder, "llama", hidden_size=32, intermediate_size=48, layers=2)


def decoder(checkpoint: Checkpoint) -> Executor:
    model = load(checkpoint, dtype="float32", activation_dtype="float32")
    assert isinstance(model, Executor)
    return model


def random_requests(vocab: int) -> list[Generate]:
    rng = random.Random(11)
    bases = [[rng.randrange(vocab) for _ in range(160)] for _ in range(4)]
    requests = []
    for number in range(REQUESTS):
        shared = rng.choice([0, 0, 31, 32, 33, 64, 100, 150])
        prompt = rng.choice(bases)[:shared] + [rng.randrange(vocab) for _ in range(rng.randrange(1, 40))]
        sampling = SamplingSpec(
            temperature=rng.choice([0.0, 0.0, 0.7, 1.0, 1.5]),
            top_p=rng.choice([1.0, 0.9]),
            top_k=rng.choice([0, 0, 5, 100]),
            min_p=rng.choice([0.0, 0.05]),
            presence_penalty=rng.choice([0.0, 0.5]),
            frequency_penalty=rng.choice([0.0, 0.2]),
            repetition_penalty=rng.choice([1.0, 1.2]),
            logit_bias=rng.choice([None, None, {9: 3.0}]),
            seed=rng.getrandbits(63),
        )
        requests.append(
            Generate(
                number,
                prompt,
                rng.choice([1, 2, 8, 20, 40]),
                sampling,
                n=rng.choice([1, 1, 1, 1, 2, 3]),
                stop_token_ids=[2],
                priority=rng.choice([0, 0, 0, 1, 2]),
            )
        )
    return requests


def test_500_requests_answer_as_they_do_alone_through_cancellations_preemption_and_prefix_hits(
    checkpoint: Checkpoint,
) -> None:
    requests = random_requests(decoder(checkpoint).vocab_size)
    engine = Engine(
        decoder(checkpoint), pages=30, max_batch_tokens=200, max_batch_size=24, batch_policy="greedy"
    )
    rng = random.Random(3)
    cancelled: set[tuple[int, int]] = set()
    coming = list(requests)

    def between(step: int) -> None:
        while coming and engine.unfinished < 40:  # requests keep arriving while others run
            engine.submit(coming.pop(0))
        if step % 7 == 0:
            request = rng.choice(requests)
            choice = rng.choice([-1, *range(request.n)])
            engine.cancel(request.id, choice)
            if not any(r is request for r in coming):
                cancelled.update((request.id, c) for c in range(request.n) if choice in (-1, c))

    answers = drive(engine, [], between=between)
    stats = engine.stats()
    assert not coming
    assert engine.rejections() == []
    assert stats.preemptions > 20
    assert stats.prompt_tokens_cached > 1000
    assert engine.unfinished == 0
    assert_all_pages_free(engine)

    alone = Engine(decoder(checkpoint), pages=30, prefix_cache=False, speculative_tokens=0)
    undisturbed = 0
    for request in requests:
        expected: Answers = drive(alone, [request])
        assert len(expected) == request.n
        for key, answer in expected.items():
            if key not in cancelled:
                undisturbed += 1
                assert (answers[key].tokens, answers[key].finish) == (answer.tokens, answer.finish), key
            elif key in answers:  # cancelled after it had finished, or in the middle
                assert answer.tokens[: len(answers[key].tokens)] == answers[key].tokens
    assert undisturbed > REQUESTS * 0.8


def test_a_prefix_hit_lowers_the_tokens_computed(checkpoint: Checkpoint) -> None:
    prompt = [(5 * i) % 300 for i in range(130)]
    computed = {}
    for cache in (True, False):
        engine = Engine(decoder(checkpoint), pages=30, prefix_cache=cache)
        for number in range(3):
            answers = drive(engine, [Generate(number, [*prompt, number], 10, SamplingSpec(temperature=0))])
            computed[cache, number] = answers[number, 0].tokens
        computed[cache] = engine.stats().prompt_tokens_computed
    assert computed[False] == 3 * 131
    assert computed[True] == 131 + 2 * 3
    assert all(computed[True, number] == computed[False, number] for number in range(3))


def test_drafts_change_no_bit_of_an_answer(checkpoint: Checkpoint) -> None:
    vocab = decoder(checkpoint).vocab_size
    rng = random.Random(3)
    requests = []
    for number in range(40):
        phrase = [rng.randrange(vocab) for _ in range(rng.randrange(2, 9))]
        sampling = SamplingSpec(
            temperature=rng.choice([0.0, 0.0, 0.02, 1.0]),
            top_p=rng.choice([1.0, 0.9]),
            frequency_penalty=rng.choice([0.0, 0.02]),
            repetition_penalty=rng.choice([1.0, 1.02]),
            seed=number,
        )
        requests.append(
            Generate(
                number,
                phrase * rng.randrange(2, 12),
                60,
                sampling,
                n=rng.choice([1, 2]),
                stop_token_ids=[2],
                logprobs=2,
            )
        )
    plain = Engine(decoder(checkpoint), pages=60, speculative_tokens=0)
    quick = Engine(decoder(checkpoint), pages=60)
    for request in requests:  # one by one: among many rows a product of matrices may differ in its last bit
        (expected, got) = (drive(engine, [request]) for engine in (plain, quick))
        for key, answer in expected.items():
            assert (got[key].tokens, got[key].finish) == (answer.tokens, answer.finish)
            assert got[key].logprobs == answer.logprobs
    assert quick.stats().accepted_tokens > 100
    together = drive(Engine(decoder(checkpoint), pages=60), requests)
    for key, answer in drive(plain, requests).items():
        assert (together[key].tokens, together[key].finish) == (answer.tokens, answer.finish)
