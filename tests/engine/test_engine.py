"""The engine over an executor whose logits depend on the tokens it finds in its pages."""

from __future__ import annotations

import math
import random

import pytest
import torch
from engine.driving import Answers, assert_all_pages_free, drive
from engine.history import HistoryExecutor

from inferloom.engine.engine import Engine
from inferloom.engine.messages import Generate, SamplingSpec

GREEDY = SamplingSpec(temperature=0)


def engine(*, pages: int = 200, executor: HistoryExecutor | None = None, **options: object) -> Engine:
    return Engine(executor or HistoryExecutor(), pages=pages, **options)  # type: ignore[arg-type]


def alone(request: Generate) -> Answers:
    return drive(engine(prefix_cache=False, batch_policy="greedy"), [request])


def greedy_tokens(prompt: list[int], count: int) -> list[int]:
    model, tokens = HistoryExecutor(), list(prompt)
    for _ in range(count):
        tokens.append(int(model.logits(tokens).argmax()))
    return tokens[len(prompt) :]


def test_greedy_tokens_are_the_models_own() -> None:
    answers = drive(engine(), [Generate(1, [5, 6, 7], 50, GREEDY)])
    assert answers[1, 0].tokens == greedy_tokens([5, 6, 7], 50)
    assert answers[1, 0].finish == "length"
    assert answers[1, 0].steps == 50


def test_a_stop_token_ends_a_choice_and_is_not_part_of_it() -> None:
    expected = greedy_tokens([5, 6, 7], 50)
    stop = expected[10]
    answers = drive(engine(), [Generate(1, [5, 6, 7], 50, GREEDY, stop_token_ids=[stop])])
    assert answers[1, 0].tokens == expected[: expected.index(stop)]
    assert answers[1, 0].finish == "stop"


def test_choices_differ_and_are_those_of_their_own_numbers() -> None:
    request = Generate(1, list(range(40)), 30, SamplingSpec(seed=3), n=4)
    answers = drive(engine(), [request])
    assert len({tuple(answers[1, c].tokens) for c in range(4)}) == 4
    two = drive(engine(), [Generate(9, list(range(40)), 30, SamplingSpec(seed=3), n=2)])
    assert [two[9, c].tokens for c in range(2)] == [answers[1, c].tokens for c in range(2)]


def test_choices_share_the_prompt_and_copy_its_tail() -> None:
    executor = HistoryExecutor()
    e = engine(executor=executor)
    answers = drive(e, [Generate(1, list(range(40)), 10, SamplingSpec(seed=3), n=4)])
    assert e.stats().prompt_tokens_computed == 40
    assert executor.copies == 3
    assert len(answers) == 4


def test_choices_that_find_no_place_wait_and_are_the_same() -> None:
    request = Generate(1, list(range(40)), 30, SamplingSpec(seed=3), n=5)
    for cache in (True, False):
        assert drive(engine(max_batch_size=2, prefix_cache=cache), [request]) == alone(request)


def test_a_second_request_with_a_known_prefix_computes_less() -> None:
    prompt = [i % 90 for i in range(100)]
    e = engine()
    first = drive(e, [Generate(1, prompt, 5, GREEDY)])
    assert (first[1, 0].cached_tokens, e.stats().prompt_tokens_computed) == (0, 100)
    second = drive(e, [Generate(2, prompt, 5, GREEDY)])
    assert second[2, 0].cached_tokens == 96
    assert e.stats().prompt_tokens_computed == 104
    assert e.stats().prompt_tokens_cached == 96
    assert second[2, 0].tokens == first[1, 0].tokens


def test_the_same_prompt_asked_many_times_at_once_is_computed_once() -> None:
    prompt = [i % 90 for i in range(100)]
    e = engine()
    answers = drive(e, [Generate(i, prompt, 5, GREEDY) for i in range(1, 5)])
    assert e.stats().prompt_tokens_computed == 100 + 3 * 4
    assert sorted(answer.cached_tokens for answer in answers.values()) == [0, 96, 96, 96]
    assert all(answer.tokens == greedy_tokens(prompt, 5) for answer in answers.values())


def test_what_was_generated_is_a_prefix_for_the_next_turn() -> None:
    e = engine()
    prompt = [i % 90 for i in range(20)]
    answer = drive(e, [Generate(1, prompt, 60, GREEDY)])[1, 0].tokens
    second = drive(e, [Generate(2, [*prompt, *answer, 1, 2], 5, GREEDY)])
    assert second[2, 0].cached_tokens == 64
    assert second[2, 0].tokens == greedy_tokens([*prompt, *answer, 1, 2], 5)


def test_without_a_prefix_cache_nothing_is_kept() -> None:
    e = engine(prefix_cache=False)
    drive(e, [Generate(1, [1] * 100, 5, GREEDY)])
    assert e.stats().pages_free == e.stats().pages_total
    assert drive(e, [Generate(2, [1] * 100, 5, GREEDY)])[2, 0].cached_tokens == 0


def test_a_flush_forgets_every_prefix() -> None:
    e = engine()
    drive(e, [Generate(1, [1] * 100, 5, GREEDY)])
    assert e.stats().pages_cached > 0
    assert_all_pages_free(e)
    assert drive(e, [Generate(2, [1] * 100, 5, GREEDY)])[2, 0].cached_tokens == 0


def random_requests(count: int, *, seed: int, vocab: int = 97) -> list[Generate]:
    rng = random.Random(seed)
    bases = [[rng.randrange(vocab) for _ in range(120)] for _ in range(3)]
    requests = []
    for number in range(count):
        prompt = rng.choice(bases)[: rng.randrange(120)] + [
            rng.randrange(vocab) for _ in range(rng.randrange(1, 40))
        ]
        sampling = SamplingSpec(
            temperature=rng.choice([0.0, 0.7, 1.0, 1.5]),
            top_p=rng.choice([1.0, 0.9]),
            top_k=rng.choice([0, 5]),
            min_p=rng.choice([0.0, 0.05]),
            presence_penalty=rng.choice([0.0, 0.5]),
            repetition_penalty=rng.choice([1.0, 1.3]),
            logit_bias=rng.choice([None, {7: 2.0}]),
            seed=rng.getrandbits(64),
        )
        requests.append(
            Generate(
                number,
                prompt,
                rng.randrange(1, 60),
                sampling,
                n=rng.choice([1, 1, 1, 3]),
                stop_token_ids=[3],
                priority=rng.choice([0, 0, 0, 1, 2]),
                logprobs=rng.choice([-1, -1, 0, 2]),
                prompt_logprobs=rng.random() < 0.1,
            )
        )
    return requests


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_answers_are_those_alone_whatever_the_batch(seed: int, cache: bool) -> None:
    requests = random_requests(60, seed=seed)
    e = engine(pages=10, max_batch_tokens=50, max_batch_size=6, prefix_cache=cache)
    together = drive(e, requests)
    assert e.stats().preemptions > 0
    assert {request.id for request in requests} == {id for id, _ in together}
    for request in requests:
        for key, expected in alone(request).items():
            got = together[key]
            assert (got.tokens, got.finish) == (expected.tokens, expected.finish)
            assert got.logprobs == expected.logprobs
            assert got.prompt_logprobs == expected.prompt_logprobs
    assert_all_pages_free(e)


def test_cancelled_requests_fall_silent_and_free_their_pages() -> None:
    rng = random.Random(5)
    requests = random_requests(60, seed=8)
    e = engine(pages=10, max_batch_tokens=50, max_batch_size=6)
    doomed = {rng.randrange(1, 200): rng.sample(requests, 2) for _ in range(15)}
    cancelled: set[tuple[int, int]] = set()

    def cancel(step: int) -> None:
        for request in doomed.get(step, ()):
            choice = rng.choice([-1, *range(request.n)])
            e.cancel(request.id, choice)
            cancelled.update((request.id, c) for c in range(request.n) if choice in (-1, c))

    answers = drive(e, requests, between=cancel)
    for request in requests:
        for key, expected in alone(request).items():
            if key not in cancelled:
                assert (answers[key].tokens, answers[key].finish) == (expected.tokens, expected.finish)
            elif key in answers:
                assert expected.tokens[: len(answers[key].tokens)] == answers[key].tokens
    assert_all_pages_free(e)
    assert e.unfinished == 0


def test_a_choice_cancelled_before_the_prompt_is_computed_never_starts() -> None:
    e = engine(max_batch_tokens=16)
    request = Generate(1, list(range(60)), 10, SamplingSpec(seed=1), n=3)
    answers = drive(e, [request], between=lambda step: e.cancel(1, 0) if step == 1 else None)
    expected = alone(request)
    assert set(answers) == {(1, 1), (1, 2)}
    assert all(answers[key].tokens == expected[key].tokens for key in answers)


def test_unknown_requests_cannot_be_cancelled_and_nothing_happens() -> None:
    e = engine()
    e.cancel(77)
    e.cancel(77, 3)
    e.submit(Generate(1, [1], 2, GREEDY))
    e.cancel(1, 5)
    assert e.unfinished == 1


def test_logprobs_come_with_every_token() -> None:
    answers = drive(engine(), [Generate(1, [5, 6], 5, SamplingSpec(temperature=0.5, seed=2), logprobs=3)])
    answer = answers[1, 0]
    tokens = [5, 6]
    for token, (value, best) in zip(answer.tokens, answer.logprobs, strict=True):
        reference = torch.log_softmax(HistoryExecutor().logits(tokens), -1)
        assert value == pytest.approx(float(reference[token]), abs=1e-5)
        assert [i for i, _ in best] == reference.topk(3).indices.tolist()
        tokens.append(token)


@pytest.mark.parametrize("max_batch_tokens", [7, 64, 10_000])
@pytest.mark.parametrize("max_tokens", [0, 3])
def test_a_prompt_can_be_scored(max_batch_tokens: int, max_tokens: int) -> None:
    prompt = [(7 * i) % 97 for i in range(70)]
    e = engine(max_batch_tokens=max_batch_tokens)
    drive(e, [Generate(1, prompt, 2, GREEDY)])  # the prefix is known, and yet every position has its logits
    answers = drive(e, [Generate(2, prompt, max_tokens, GREEDY, n=2, logprobs=2, prompt_logprobs=True)])
    for choice in range(2):
        answer = answers[2, choice]
        assert len(answer.tokens) == max_tokens
        assert answer.finish == "length"
        assert answer.prompt_logprobs is not None
        assert answer.prompt_logprobs[0] == (None, [])
        assert len(answer.prompt_logprobs) == len(prompt)
        for position, (value, best) in enumerate(answer.prompt_logprobs[1:], start=1):
            reference = torch.log_softmax(HistoryExecutor().logits(prompt[:position]), -1)
            assert value == pytest.approx(float(reference[prompt[position]]), abs=1e-5)
            assert [i for i, _ in best] == reference.topk(2).indices.tolist()


def test_no_tokens_and_no_scores_need_no_computation() -> None:
    executor = HistoryExecutor()
    e = engine(executor=executor)
    answers = drive(
        e, [Generate(1, [1, 2], 0, GREEDY, n=2), Generate(2, [1], 0, GREEDY, prompt_logprobs=True)]
    )
    assert {key: a.finish for key, a in answers.items()} == dict.fromkeys([(1, 0), (1, 1), (2, 0)], "length")
    assert answers[2, 0].prompt_logprobs == [(None, [])]
    assert executor.batches == []
    assert e.unfinished == 0


def test_the_seed_decides_the_text() -> None:
    def text(seed: int) -> list[int]:
        return drive(engine(), [Generate(1, [1, 2], 30, SamplingSpec(seed=seed))])[1, 0].tokens

    assert text(1) == text(1)
    assert text(1) != text(2)


@pytest.mark.parametrize(
    ("request_", "kind", "words"),
    [
        (Generate(1, [1] * 60, 10, GREEDY), "context_length_exceeded", "60 tokens and 10 more"),
        (Generate(1, [], 10, GREEDY), "invalid_request", "the prompt is empty"),
        (Generate(1, [1, 97], 10, GREEDY), "invalid_request", "token id 97 in the prompt"),
        (Generate(1, [1, -1], 10, GREEDY), "invalid_request", "token id -1 in the prompt"),
        (Generate(1, [1], 10, GREEDY, n=0), "invalid_request", "n must be at least 1"),
        (Generate(1, [1], 1, SamplingSpec(logit_bias={9: math.inf})), "invalid_request", "finite"),
        (Generate(1, [1], 1, SamplingSpec(temperature=math.nan)), "invalid_request", "temperature must be"),
        (Generate(1, [1], 1, SamplingSpec(min_p=1.5)), "invalid_request", "min_p must be between 0 and 1"),
        (Generate(1, [1], 1, SamplingSpec(repetition_penalty=0.0)), "invalid_request", "repetition_penalty"),
        (Generate(1, [1], 1, SamplingSpec(top_k=-1)), "invalid_request", "top_k must be at least 0"),
        (Generate(1, [1], -1, GREEDY), "invalid_request", "max_tokens at least 0"),
        (
            Generate(1, [1], 1, SamplingSpec(logit_bias={99: 1.0})),
            "invalid_request",
            "token id 99 in logit_bias",
        ),
    ],
)
def test_what_can_never_run_is_refused_with_a_sentence(request_: Generate, kind: str, words: str) -> None:
    e = engine(pages=2)
    e.submit(request_)
    (rejected,) = e.rejections()
    assert (rejected.id, rejected.kind) == (1, kind)
    assert words in rejected.message
    assert not e.has_work
    assert e.unfinished == 0
    assert e.rejections() == []


def test_the_context_is_what_the_pages_hold() -> None:
    assert engine(pages=2).max_model_len == 64
    assert engine(pages=500).max_model_len == 4096
    e = engine(pages=2)
    assert len(drive(e, [Generate(1, [1] * 40, 24, GREEDY)])[1, 0].tokens) == 24


def test_logits_that_are_no_numbers_end_the_choice_with_an_error() -> None:
    class Broken(HistoryExecutor):
        def logits(self, history: list[int]) -> torch.Tensor:
            return super().logits(history) * (math.nan if len(history) > 5 else 1)

    e = engine(executor=Broken())
    answer = drive(e, [Generate(1, [1, 2], 30, GREEDY)])[1, 0]
    assert (len(answer.tokens), answer.finish) == (4, "error")
    assert_all_pages_free(e)


@pytest.mark.parametrize("policy", ["adaptive", "eager", "greedy"])
def test_every_policy_gives_the_same_answers(policy: str) -> None:
    requests = random_requests(20, seed=4)
    answers = drive(engine(batch_policy=policy), requests)
    for request in requests:
        assert all(answers[key].tokens == a.tokens for key, a in alone(request).items())


def test_statistics_tell_what_was_done() -> None:
    e = engine(pages=20)
    drive(e, [Generate(1, [1] * 40, 5, GREEDY), Generate(2, [2] * 10, 5, GREEDY)])
    stats = e.stats(7)
    assert (stats.id, stats.running, stats.waiting, stats.pages_total) == (7, 0, 0, 20)
    assert (stats.prompt_tokens, stats.prompt_tokens_computed, stats.generated_tokens) == (50, 50, 10)
    assert stats.steps == 5
    assert stats.pages_free + stats.pages_cached == 20


def test_only_what_takes_the_likeliest_tokens_does_without_the_other_logits() -> None:
    """Alone in its batches; beside another that wants more, everything is computed."""
    plain = Generate(1, [5, 6, 7], 4, GREEDY)
    others = {
        "sampled": Generate(1, [5, 6, 7], 4, SamplingSpec(temperature=0.5)),
        "scored": Generate(1, [5, 6, 7], 4, GREEDY, logprobs=0),
        "prompt scored": Generate(1, [5, 6, 7], 4, GREEDY, logprobs=0, prompt_logprobs=True),
        "penalised": Generate(1, [5, 6, 7], 4, SamplingSpec(temperature=0, frequency_penalty=0.5)),
        "biased": Generate(1, [5, 6, 7], 4, SamplingSpec(temperature=0, logit_bias={3: 1.0})),
    }
    executor = HistoryExecutor()
    drive(engine(executor=executor), [plain])
    assert executor.best_only == len(executor.batches)
    for name, other in others.items():
        for requests in ([other], [other, Generate(2, [5, 6, 7], 4, GREEDY)]):
            executor = HistoryExecutor()
            drive(engine(executor=executor), requests)
            assert executor.best_only == 0, name
