"""The dummy driver has an engine's manners."""

from __future__ import annotations

import time

import pytest
from worker_driving import Driven

from inferloom.engine.messages import GrammarSpec
from inferloom.errors import LoadFailed
from inferloom.types import ModelCard
from inferloom.worker.dummy import DummyHost
from inferloom.worker.messages.job import WorkerJob
from inferloom.worker.messages.replies import (
    Embedded,
    Progress,
    Ready,
    Rejected,
    Resized,
    Spilled,
    Stats,
    Step,
)
from inferloom.worker.messages.requests import Cancel, Embed, Generate, GetStats, Resize, SamplingSpec, Spill
from inferloom.worker.pool import WorkerPool


def host(**options: object) -> DummyHost:
    return DummyHost(WorkerJob(model="m", driver="dummy", options=dict(options)), report=lambda *_: None)


def ask(number: int = 1, **fields: object) -> Generate:
    given: dict[str, object] = {"prompt": [1], "max_tokens": 10, "sampling": SamplingSpec()} | fields
    return Generate(id=number, **given)  # type: ignore[arg-type]


def run(dummy: DummyHost) -> list[tuple[int, int, list[int], str | None]]:
    found = []
    while dummy.has_work:
        for reply in dummy.step():
            assert isinstance(reply, Step)
            found += [(one.id, one.choice, one.tokens, one.finish) for one in reply.sequences]
    return found


def test_every_sequence_gains_one_token_a_step() -> None:
    dummy = host(tokens=[5, 6, 7])
    dummy.generate(ask(1, max_tokens=2))
    dummy.generate(ask(2, max_tokens=1))
    assert run(dummy) == [(1, 0, [5], None), (2, 0, [5], "length"), (1, 0, [6], "length")]


def test_the_answer_ends_with_its_end_token_which_is_not_text() -> None:
    dummy = host(tokens=[5, 6], end_token=9)
    dummy.generate(ask(stop_token_ids=[9]))
    assert run(dummy) == [(1, 0, [5], None), (1, 0, [6], None), (1, 0, [], "stop")]


def test_with_the_end_token_ignored_the_answer_goes_on() -> None:
    dummy = host(tokens=[5, 6], end_token=9)
    dummy.generate(ask(max_tokens=4))
    assert [tokens for _, _, tokens, _ in run(dummy)] == [[5], [6], [9], [5]]


def test_each_choice_has_its_own_end() -> None:
    dummy = host(tokens=[5])
    dummy.generate(ask(n=2, max_tokens=1))
    assert run(dummy) == [(1, 0, [5], "length"), (1, 1, [5], "length")]


def test_a_cancelled_choice_says_nothing_more() -> None:
    dummy = host(tokens=[5])
    dummy.generate(ask(n=2, max_tokens=1))
    dummy.cancel(Cancel(1, 0))
    assert run(dummy) == [(1, 1, [5], "length")]


def test_logprobs_come_for_prompt_and_answer() -> None:
    dummy = host(tokens=[5])
    dummy.generate(ask(prompt=[1, 2], max_tokens=1, logprobs=2, prompt_logprobs=True))
    (reply,) = dummy.step()
    assert isinstance(reply, Step)
    (step,) = reply.sequences
    assert step.logprobs is not None and step.prompt_logprobs is not None
    assert [token for token, _ in step.logprobs[0][1]] == [5, 0]
    assert [value for value, _ in step.prompt_logprobs] == [None, pytest.approx(-0.1)]


def test_a_rate_spreads_the_tokens_over_time() -> None:
    dummy = host(tokens=[5], tokens_per_second=200.0)
    dummy.generate(ask(max_tokens=4))
    begun = time.monotonic()
    tokens = 0
    while dummy.has_work:
        replies = dummy.step()
        tokens += sum(
            len(one.tokens) for reply in replies if isinstance(reply, Step) for one in reply.sequences
        )
        time.sleep(dummy.pause if not replies else 0)
    assert tokens == 4
    assert time.monotonic() - begun >= 4 / 200


def test_a_grammar_is_refused_rather_than_ignored() -> None:
    dummy = host()
    dummy.generate(ask(grammar=GrammarSpec("regex", "a+")))
    (reply,) = dummy.step()
    assert isinstance(reply, Rejected) and reply.kind == "unsupported"


def test_embeddings_have_length_1_and_depend_on_the_tokens_alone() -> None:
    import struct

    dummy = host(kind="embed", dimensions=20)
    assert isinstance(dummy.card, ModelCard) and dummy.card.dimensions == 20
    dummy.embed(Embed(1, [[1, 2], [3], [1, 2]]))
    (reply,) = dummy.step()
    assert isinstance(reply, Embedded)
    rows = [struct.unpack("<20f", reply.data[at : at + 80]) for at in range(0, 240, 80)]
    assert rows[0] == rows[2] != rows[1]
    assert sum(value * value for value in rows[0]) == pytest.approx(1.0, abs=1e-5)


def test_a_load_can_be_told_to_fail() -> None:
    with pytest.raises(LoadFailed, match="out of luck"):
        host(fail_load="out of luck")


async def test_a_slow_load_reports_how_far_it_is(pool: object) -> None:
    from inferloom.worker.pool import WorkerPool

    assert isinstance(pool, WorkerPool)
    worker = await Driven.begin(pool, load_secs=0.1)
    fractions = [(await worker.hear(Progress)).fraction for _ in range(2)]
    assert fractions == sorted(fractions, key=lambda value: value or 0.0)
    await worker.hear(Ready)


async def test_a_cancellation_takes_effect_within_a_step(worker: Driven) -> None:
    worker.process.send(ask(max_tokens=1_000_000_000))
    await worker.until(lambda: worker.steps(1) or None)
    worker.process.send(Cancel(1))
    worker.process.send(GetStats(5))
    stats = await worker.until(
        lambda: next((one for one in worker.said if isinstance(one, Stats) and one.id == 5), None)
    )
    assert stats.running == 0


async def test_a_cancellation_that_comes_with_its_request_is_not_too_early(worker: Driven) -> None:
    worker.process.send(ask(1, max_tokens=1_000_000_000))
    worker.process.send(Cancel(1))
    worker.process.send(ask(2, max_tokens=3))
    assert len(await worker.finish(2)) == 3
    worker.process.send(GetStats(5))
    assert (
        await worker.until(
            lambda: next((one for one in worker.said if isinstance(one, Stats) and one.id == 5), None)
        )
    ).running == 0


async def test_pages_are_but_said_and_nothing_is_kept(worker: Driven) -> None:
    worker.process.send(Resize(5, 40))
    assert (await worker.hear(Resized)).pages == 40
    worker.process.send(Spill(6, "/nowhere/at-all", "me", 1 << 20))
    assert await worker.hear(Spilled) == Spilled(6, 0, 0)


async def test_pages_that_answers_use_are_given_back_when_those_end(pool: WorkerPool) -> None:
    worker = await Driven.spawn(pool, kv_mb=40, kv_used_mb=10, tokens_per_second=20.0, tokens=[1] * 400)
    for number in (1, 2):
        worker.process.send(Generate(id=number, prompt=[1], max_tokens=4000, sampling=SamplingSpec()))
    await worker.hear(Step)
    worker.process.send(Resize(5, 8))
    assert (await worker.hear(Resized)).pages == 20
    worker.process.send(Cancel(1))
    assert await worker.hear(Resized) == Resized(0, 10, 32768)
    worker.process.send(Cancel(2))
    assert await worker.hear(Resized) == Resized(0, 8, 32768)
