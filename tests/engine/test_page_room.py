"""An engine whose KV pages become fewer and more while it runs, and outlive it."""

from __future__ import annotations

import os
import random
from functools import partial
from pathlib import Path

import pytest
import torch
from engine.driving import assert_all_pages_free, drive
from factories.checkpoints import Family, make_checkpoint

from inferloom.engine.engine import Engine
from inferloom.engine.messages import Generate, SamplingSpec
from inferloom.engine.prefix_cache import extend_keys
from inferloom.formats.checkpoint import Checkpoint
from inferloom.models.batch import PAGE_SIZE, Executor
from inferloom.models.kv_memory import runs
from inferloom.models.loader import load
from inferloom.worker.memory import pss

GREEDY = SamplingSpec(temperature=0.0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return make_checkpoint(tmp_path_factory.mktemp("models") / "qwen3", "qwen3", dtype=torch.bfloat16)


def executor_of(checkpoint: Checkpoint) -> Executor:
    model = load(checkpoint)
    assert isinstance(model, Executor)
    return model


def prompt(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(3, 300) for _ in range(length)]


def asked(count: int, *, length: int = 100, tokens: int = 12) -> list[Generate]:
    return [Generate(number, prompt(number % 7, length), tokens, GREEDY) for number in range(count)]


def test_answers_are_the_same_while_pages_go_and_come(checkpoint: Checkpoint) -> None:
    expected = drive(Engine(executor_of(checkpoint), pages=64), asked(40))
    engine = Engine(executor_of(checkpoint), pages=16, most_pages=64, max_batch_size=8)
    rng = random.Random(1)
    counts = set()

    def between(step: int) -> None:
        if step % 3 == 0:
            counts.add(engine.resize(rng.choice([1, 4, 9, 16, 40, 64, 1000])))
        engine._pool.check()

    answers = drive(engine, asked(40), between=between)
    assert {key: one.tokens for key, one in answers.items()} == {
        key: one.tokens for key, one in expected.items()
    }
    assert max(counts) == 64 and min(counts) < 16
    assert_all_pages_free(engine)


def test_pages_in_use_follow_as_they_are_released(checkpoint: Checkpoint) -> None:
    engine = Engine(executor_of(checkpoint), pages=32, prefix_cache=False)
    for request in asked(4):
        engine.submit(request)
    engine.step()
    held = 4 * -(-100 // PAGE_SIZE)
    assert engine.resize(2) == held
    assert engine.max_model_len == -(-112 // PAGE_SIZE) * PAGE_SIZE  # what the four may need, one at a time
    while engine.has_work:
        before = engine.room.pages
        engine.step()
        assert engine.room.pages <= before
    assert engine.room.pages == 2
    assert engine.max_model_len == 2 * PAGE_SIZE


def test_a_cancelled_requests_pages_follow_at_once(checkpoint: Checkpoint) -> None:
    engine = Engine(executor_of(checkpoint), pages=32)
    engine.submit(asked(1, length=300)[0])
    engine.step()
    assert engine.resize(1) > 1
    engine.cancel(0)
    assert engine.room.pages == 1


def test_a_context_that_was_promised_always_fits(checkpoint: Checkpoint) -> None:
    engine = Engine(executor_of(checkpoint), pages=16, least_pages=5)
    assert engine.resize(1) == 5
    assert engine.max_model_len == 5 * PAGE_SIZE
    engine.submit(Generate(1, prompt(1, 170), 4, GREEDY))
    (refused,) = engine.rejections()
    assert refused.kind == "context_length_exceeded"
    assert engine.resize(16) == 16
    assert drive(engine, [Generate(2, prompt(1, 170), 4, GREEDY)])[2, 0].finish == "length"


def test_cached_prefixes_go_the_longest_unused_first(checkpoint: Checkpoint) -> None:
    engine = Engine(executor_of(checkpoint), pages=16)
    old, fresh = Generate(1, prompt(1, 97), 1, GREEDY), Generate(2, prompt(2, 97), 1, GREEDY)
    drive(engine, [old])
    drive(engine, [fresh])
    assert engine.resize(4) == 4
    again = drive(engine, [Generate(3, prompt(2, 97), 1, GREEDY)])[3, 0]
    assert again.cached_tokens == 96
    assert engine.resize(16) == 16
    gone = drive(engine, [Generate(4, prompt(1, 97), 1, GREEDY)])[4, 0]
    assert gone.cached_tokens == 0


@pytest.mark.parametrize(
    ("family", "activation_dtype"), [("qwen3", "bfloat16"), ("qwen3", "float32"), ("cohere", "bfloat16")]
)
def test_what_goes_is_the_kernels_again_and_what_was_never_used_was_never_taken(
    family: Family, activation_dtype: str, tmp_path: Path
) -> None:
    sizes = {"hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 32}
    checkpoint = make_checkpoint(
        tmp_path / "m", family, dtype=torch.bfloat16, layers=2, max_positions=4096, **sizes
    )
    model = load(checkpoint, activation_dtype=activation_dtype)
    assert isinstance(model, Executor)
    pages = (64 << 20) // model.kv_bytes_per_page
    engine = Engine(model, pages=pages, most_pages=16 * pages, max_batch_tokens=512)
    drive(engine, [Generate(0, prompt(0, 600), 1, GREEDY)])  # whatever a step takes besides

    def own() -> int:
        memory = pss(os.getpid())
        assert memory is not None
        return memory.own

    empty = own()
    for table in model.page_tables():  # every page is written once
        import ctypes

        ctypes.memset(table.address, 1, table.size * pages)
    full = own()
    assert full - empty > 48 << 20
    assert engine.resize(pages // 8) == pages // 8
    assert full - own() > 48 << 20
    assert engine.resize(pages) == pages
    assert own() - empty < 16 << 20  # nothing is taken before it is used


def test_kept_pages_are_attached_to_another_engine(checkpoint: Checkpoint) -> None:
    first = Engine(executor_of(checkpoint), pages=32)
    question = Generate(1, prompt(3, 200), 16, GREEDY)
    answer = drive(first, [question])[1, 0]
    kept = first.room.hottest(100)
    assert len(kept) == 6
    second = Engine(executor_of(checkpoint), pages=32)
    assert second.room.attach(kept) == 6
    again = drive(second, [Generate(2, prompt(3, 200), 16, GREEDY)])[2, 0]
    assert again.cached_tokens == 192
    assert again.tokens == answer.tokens
    assert second.room.attach(kept) == 0  # known already


def test_kept_pages_hold_what_the_draft_model_knows_of_their_tokens(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    small = make_checkpoint(tmp_path / "small", "qwen3", layers=1, seed=2)
    own = executor_of(checkpoint).kv_bytes_per_page

    def engine() -> Engine:
        return Engine(executor_of(checkpoint), pages=32, draft=executor_of(small), speculative_tokens=4)

    def held(engine: Engine) -> dict[bytes, bytes]:
        return {key: bytes(content() or b"") for key, content in engine.room.hottest(100)}

    first, second = engine(), engine()
    drive(first, [Generate(1, prompt(3, 200), 1, GREEDY)])
    kept = held(first)
    assert all(any(content[own:]) for content in kept.values())
    assert second.room.attach([(key, partial(bytes, content)) for key, content in kept.items()]) == 6
    assert held(second) == kept
    drive(
        second, [Generate(1, prompt(3, 200), 1, GREEDY)]
    )  # from the pages, not from what they were promised
    assert held(second) == kept


def test_a_page_whose_content_is_gone_is_computed_again_with_what_follows(checkpoint: Checkpoint) -> None:
    first = Engine(executor_of(checkpoint), pages=32)
    answer = drive(first, [Generate(1, prompt(3, 200), 16, GREEDY)])[1, 0]
    kept = first.room.hottest(100)
    third = sequence_keys(prompt(3, 200))[2]
    second = Engine(executor_of(checkpoint), pages=32)
    assert second.room.attach([(key, content if key != third else nothing) for key, content in kept]) == 6
    again = drive(second, [Generate(2, prompt(3, 200), 16, GREEDY)])[2, 0]
    assert (again.cached_tokens, again.tokens) == (64, answer.tokens)
    assert drive(second, [Generate(3, prompt(3, 200), 16, GREEDY)])[3, 0].cached_tokens == 192


def sequence_keys(tokens: list[int]) -> list[bytes]:
    keys: list[bytes] = []
    extend_keys(keys, tokens, pages=len(tokens) // PAGE_SIZE, page_size=PAGE_SIZE)
    return keys


def nothing() -> None:
    """The content of a page that is damaged."""


def test_a_promised_page_that_is_reclaimed_is_not_filled_later(checkpoint: Checkpoint) -> None:
    first = Engine(executor_of(checkpoint), pages=32)
    answers = {seed: drive(first, [Generate(1, prompt(seed, 100), 8, GREEDY)])[1, 0] for seed in (1, 2, 3)}
    second = Engine(executor_of(checkpoint), pages=8)
    assert second.room.attach(first.room.hottest(100)) == 8
    for seed in (4, 3, 2, 1, 4, 1):  # each needs four pages: what was promised goes
        answer = drive(second, [Generate(2, prompt(seed, 100), 8, GREEDY)])[2, 0]
        assert seed == 4 or answer.tokens == answers[seed].tokens


def test_a_smaller_pool_takes_the_hottest_that_fit(checkpoint: Checkpoint) -> None:
    first = Engine(executor_of(checkpoint), pages=32)
    drive(first, [Generate(1, prompt(1, 200), 1, GREEDY)])
    drive(first, [Generate(2, prompt(2, 100), 1, GREEDY)])
    kept = first.room.hottest(100)
    second = Engine(executor_of(checkpoint), pages=5)
    assert second.room.attach(kept) == 5
    answer = drive(second, [Generate(3, prompt(2, 100), 1, GREEDY)])[3, 0]
    assert answer.cached_tokens == 96


def test_consecutive_numbers_are_one_run() -> None:
    assert list(runs([0, 1, 2, 5, 7, 8])) == [(0, 3), (5, 6), (7, 9)]
    assert list(runs([])) == []
