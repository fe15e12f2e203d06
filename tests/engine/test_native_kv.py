"""The engine over int8 pages: prefix hits, copied tails, preemption, chunks and drafts change no answer."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from engine.driving import assert_all_pages_free, drive
from factories.checkpoints import make_checkpoint

from inferloom.engine.engine import Engine
from inferloom.engine.messages import Generate, SamplingSpec
from inferloom.formats.checkpoint import Checkpoint
from inferloom.models.loader import load
from inferloom.models.native import NativeDecoder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder: Path = tmp_path_factory.mktemp("models") / "llama"
    return make_checkpoint(folder, "llama", dtype=torch.bfloat16)


def int8_pages(checkpoint: Checkpoint) -> NativeDecoder:
    model = load(checkpoint, kv_dtype="int8")
    assert isinstance(model, NativeDecoder)
    return model


def requests(count: int, vocab: int) -> list[Generate]:
    """Prompts that share beginnings, and phrases that repeat, greedy and sampled, with several choices."""
    rng = random.Random(5)
    bases = [[rng.randrange(3, vocab) for _ in range(160)] for _ in range(3)]
    made = []
    for number in range(count):
        prompt = rng.choice(bases)[: rng.choice([0, 31, 33, 64, 100])]
        phrase = [rng.randrange(3, vocab) for _ in range(rng.randrange(2, 8))]
        sampling = SamplingSpec(temperature=rng.choice([0.0, 0.0, 0.8]), top_p=0.9, seed=number)
        made.append(
            Generate(
                number,
                prompt + phrase * rng.randrange(1, 8),
                rng.choice([8, 40]),
                sampling,
                n=rng.choice([1, 1, 2]),
                stop_token_ids=[2],
                priority=rng.choice([0, 0, 1]),
            )
        )
    return made


def test_answers_are_those_alone_through_prefix_hits_preemption_chunks_and_drafts(
    checkpoint: Checkpoint,
) -> None:
    asked = requests(300, int8_pages(checkpoint).vocab_size)
    engine = Engine(
        int8_pages(checkpoint), pages=24, max_batch_tokens=90, max_batch_size=16, batch_policy="greedy"
    )
    assert engine._speculator is not None
    engine._speculator._costs.seconds = lambda rows: 1.0  # type: ignore[method-assign]  # every draft is verified
    coming = list(asked)

    def between(step: int) -> None:
        while coming and engine.unfinished < 20:  # requests keep arriving while others run
            engine.submit(coming.pop(0))

    answers = drive(engine, [], between=between)
    stats = engine.stats()
    assert stats.prompt_tokens_cached > 500
    assert stats.preemptions > 10
    assert stats.drafted_tokens > 200  # and most of them are taken back
    assert stats.accepted_tokens > 10
    assert_all_pages_free(engine)

    alone = Engine(int8_pages(checkpoint), pages=24, prefix_cache=False, speculative_tokens=0)
    for request in asked:
        for key, expected in drive(alone, [request]).items():
            assert (answers[key].tokens, answers[key].finish) == (expected.tokens, expected.finish), key
