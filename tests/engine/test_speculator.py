"""Speculation is lossless: every answer is token for token what it is without drafts."""

from __future__ import annotations

import random
import threading

import pytest
import torch
from engine.driving import Answer, Answers, assert_all_pages_free, drive
from engine.history import HistoryExecutor
from engine.test_grammar import EOS, TOKENIZER

from inferloom.engine.engine import Engine
from inferloom.engine.messages import Generate, GrammarSpec, SamplingSpec

GREEDY = SamplingSpec(temperature=0)


class ForgetfulExecutor(HistoryExecutor):
    """Its logits follow from the latest two tokens alone, so that texts repeat themselves and lookups often hold."""

    def __init__(self, *, vocab_size: int = 13, strength: float = 4.0) -> None:
        super().__init__(vocab_size=vocab_size)
        self.strength = strength

    def logits(self, history: list[int]) -> torch.Tensor:
        return super().logits(history[-2:]) * (self.strength / 3)


def engine(executor: HistoryExecutor | None = None, *, pages: int = 300, **options: object) -> Engine:
    return Engine(executor or ForgetfulExecutor(), pages=pages, **options)  # type: ignore[arg-type]


def eager(e: Engine) -> Engine:
    """An engine that verifies every draft there is, whatever it costs."""
    assert e._speculator is not None
    e._speculator._costs.seconds = lambda rows: 1.0  # type: ignore[method-assign]
    return e


def said(answer: Answer) -> tuple[object, ...]:
    """All of an answer but the number of its steps."""
    return (answer.tokens, answer.finish, answer.logprobs, answer.prompt_logprobs)


def assert_same(got: Answers, expected: Answers) -> None:
    assert got.keys() == expected.keys()
    for key in expected:
        assert said(got[key]) == said(expected[key])


def random_requests(count: int, *, seed: int, vocab: int) -> list[Generate]:
    rng = random.Random(seed)
    requests = []
    for number in range(count):
        sampling = SamplingSpec(
            temperature=rng.choice([0.0, 0.3, 1.0]),
            top_p=rng.choice([1.0, 0.9]),
            top_k=rng.choice([0, 3]),
            min_p=rng.choice([0.0, 0.05]),
            presence_penalty=rng.choice([0.0, 0.0, 0.7]),
            frequency_penalty=rng.choice([0.0, 0.0, 0.1]),
            repetition_penalty=rng.choice([1.0, 1.0, 1.3]),
            logit_bias=rng.choice([None, None, {7: 2.0}]),
            seed=rng.getrandbits(64),
        )
        requests.append(
            Generate(
                number,
                [rng.randrange(vocab) for _ in range(rng.randrange(1, 80))],
                rng.randrange(1, 120),
                sampling,
                n=rng.choice([1, 1, 3]),
                stop_token_ids=rng.choice([[], [3]]),
                priority=rng.choice([0, 0, 1]),
                logprobs=rng.choice([-1, -1, 0, 2]),
                prompt_logprobs=rng.random() < 0.1,
            )
        )
    return requests


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_answers_are_those_without_drafts(seed: int, cache: bool) -> None:
    requests = random_requests(40, seed=seed, vocab=13)
    e = eager(engine(pages=20, max_batch_tokens=60, max_batch_size=6, prefix_cache=cache))
    got = drive(e, requests)
    assert_same(got, drive(engine(speculative_tokens=0), requests))
    stats = e.stats()
    assert stats.preemptions > 0
    assert 100 < stats.accepted_tokens < stats.drafted_tokens
    assert_all_pages_free(e)


def test_a_repetitive_text_takes_a_fraction_of_the_steps() -> None:
    request = Generate(1, [1, 2], 400, GREEDY)
    plain, quick = engine(speculative_tokens=0), eager(engine())
    assert_same(drive(quick, [request]), drive(plain, [request]))
    assert quick.stats().steps < plain.stats().steps / 4


def test_a_long_context_is_only_extended_by_what_held() -> None:
    # pages are shared, filled and remembered under the tokens that were kept, so a second turn finds them
    request = Generate(1, [1, 2], 200, GREEDY)
    e = eager(engine())
    answer = drive(e, [request])[1, 0].tokens
    second = Generate(2, [1, 2, *answer, 5], 40, GREEDY)
    assert drive(e, [second])[2, 0].cached_tokens == 192
    assert_same(drive(eager(engine()), [second]), drive(engine(speculative_tokens=0), [second]))


@pytest.mark.parametrize("max_tokens", range(1, 30))
def test_the_limit_holds_within_a_draft(max_tokens: int) -> None:
    e = eager(engine())
    answer = drive(e, [Generate(1, [4, 4, 4, 4, 4, 4], max_tokens, GREEDY)])[1, 0]
    assert len(answer.tokens) == max_tokens
    assert answer.finish == "length"


def test_a_context_can_be_filled_to_its_last_token() -> None:
    e = eager(engine(pages=2))
    request = Generate(1, [1, 2], 62, GREEDY)
    assert_same(drive(e, [request]), drive(engine(pages=2, speculative_tokens=0), [request]))


def test_drafts_never_take_a_page_that_a_sequence_will_need() -> None:
    requests = [Generate(i, [i, i + 1] * 8, 100, SamplingSpec(seed=i, temperature=0.2)) for i in range(4)]
    plain = engine(pages=16, speculative_tokens=0, prefix_cache=False)
    quick = eager(engine(pages=16, prefix_cache=False))
    assert_same(drive(quick, requests), drive(plain, requests))
    assert quick.stats().preemptions == plain.stats().preemptions == 0


def test_no_step_is_larger_than_the_batch_may_be() -> None:
    executor = ForgetfulExecutor()
    e = eager(engine(executor, max_batch_tokens=8))
    drive(e, [Generate(i, [1, 2] * 10, 60, GREEDY) for i in range(3)])
    assert max(len(batch.token_ids) for batch in executor.batches) == 8


def test_texts_without_repetition_are_hardly_drafted() -> None:
    e = engine(
        HistoryExecutor(vocab_size=50)
    )  # whatever follows a pair says nothing of what follows it next time
    e._speculator._costs.seconds = lambda rows: 1.0 + 0.2 * (rows - 1)  # type: ignore[union-attr,method-assign]
    drive(e, [Generate(1, [7], 1500, SamplingSpec(seed=1))])
    assert e.stats().drafted_tokens < 30


def test_cancelled_choices_leave_no_page_behind() -> None:
    rng = random.Random(2)
    requests = random_requests(30, seed=9, vocab=13)
    doomed = {rng.randrange(1, 60): rng.sample(requests, 3) for _ in range(10)}
    e = eager(engine(pages=30, max_batch_size=6))

    def cancel(step: int) -> None:
        for request in doomed.get(step, ()):
            e.cancel(request.id, rng.choice([-1, 0]))

    drive(e, requests, between=cancel)
    assert_all_pages_free(e)
    assert e.unfinished == 0


GRAMMARS = [
    GrammarSpec("regex", "(abc|abd|xyz){10}"),
    GrammarSpec("regex", "[ab]{5,40}"),
    GrammarSpec(
        "json_schema", '{"enum": ["a long text that is forced once its second letter stands", "ab"]}'
    ),
    GrammarSpec(
        "json_schema",
        '{"type": "array", "minItems": 3, "items": {"type": "object", "required": ["name", "pet"], "properties": '
        '{"name": {"enum": ["Ann", "Bob"]}, "pet": {"enum": ["cat", "dog"]}}, "additionalProperties": false}}',
    ),
]


def test_grammars_hold_within_drafts() -> None:
    requests = [
        Generate(
            i,
            TOKENIZER.encode("abcabc").ids,
            60 + 10 * i,
            SamplingSpec(temperature=[0.0, 0.5, 1.5][i % 3], seed=i, presence_penalty=[0.0, 0.4][i % 2]),
            grammar=GRAMMARS[i % len(GRAMMARS)],
            stop_token_ids=[EOS] if i % 5 else [EOS, *TOKENIZER.encode("b").ids],
            logprobs=[-1, 1][i % 2],
            n=1 + i % 2,
        )
        for i in range(24)
    ]

    def answers(speculative_tokens: int) -> tuple[Answers, Engine]:
        wake = threading.Event()
        e = engine(
            ForgetfulExecutor(vocab_size=258),
            tokenizer_json=TOKENIZER.to_str,
            eos_token_ids=[EOS],
            wake=wake.set,
            speculative_tokens=speculative_tokens,
        )
        if speculative_tokens:
            eager(e)
        return drive(e, requests, wake=wake), e

    (expected, plain), (got, quick) = answers(0), answers(8)
    assert_same(got, expected)
    assert quick.stats().accepted_tokens > 500
    assert quick.stats().steps < plain.stats().steps / 2
