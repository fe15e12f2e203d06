"""Nothing that a request can say makes a step fail: a failing step is the end of the worker and of everybody's answers."""

from __future__ import annotations

import math
import random
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from factories.checkpoints import make_checkpoint

from inferloom.worker.messages.job import WorkerJob
from inferloom.worker.messages.replies import FromWorker, Rejected, SequenceStep, Step
from inferloom.worker.messages.requests import Cancel, Generate, GrammarSpec, SamplingSpec, ToWorker
from inferloom.worker.native import EngineHost, load_native

BIG = 2**40
PATIENCE = 30.0

GRAMMARS = [
    *[None] * 6,
    GrammarSpec("json_schema", '{"type":"object"}'),
    GrammarSpec("json_schema", "{"),
    GrammarSpec("json_schema", '{"enum":[]}'),
    GrammarSpec("json_schema", '{"type":"integer","minimum":1,"maximum":0}'),
    GrammarSpec("json_schema", '{"type":"string","minLength":100000000}'),
    GrammarSpec("json_schema", '{"type":"array","items":{"$ref":"#"}}'),
    GrammarSpec("regex", "(a|b){1,3}"),
    GrammarSpec("regex", "((((a{1,1000}){1,1000}){1,1000})"),
    GrammarSpec("regex", ""),
    GrammarSpec("regex", r"[^\s\S]"),
    GrammarSpec("lark", 'start: start start | "a"'),
    GrammarSpec("lark", ""),
]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> EngineHost:
    folder: Path = tmp_path_factory.mktemp("odd") / "tiny"
    torch.set_num_threads(1)
    job = WorkerJob(
        model="m",
        driver="native",
        checkpoint=make_checkpoint(folder, "llama"),
        threads=1,
        activation_dtype="float32",
        kv_budget_bytes=1 << 20,
    )
    made = load_native(job, report=lambda stage, fraction: None)
    assert isinstance(made, EngineHost)
    return made


def over_the_wire(message: Generate) -> Generate:
    decoded = msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=ToWorker)
    assert isinstance(decoded, Generate)
    return decoded


def odd(number: int, chance: random.Random, *, vocab: int, longest: int) -> Generate:
    def one(*values: Any) -> Any:
        return chance.choice(values)

    prompts = ([1], [], [5] * 10, [vocab], [-1], [0] * (longest - 1), [3] * longest, list(range(50)))
    biases = (
        None,
        None,
        {},
        {0: 100.0},
        {vocab: 1.0},
        {-1: 1.0},
        {1: math.inf},
        dict.fromkeys(range(vocab), -100.0),
    )
    return Generate(
        id=number,
        prompt=one(*prompts),
        max_tokens=one(0, 1, 3, 8, longest, BIG, -1),
        n=one(1, 1, 1, 2, 5, 64, 0),
        sampling=SamplingSpec(
            temperature=one(0.0, 1.0, 2.0, 1e-30, math.nan, 1e30),
            top_p=one(1.0, 0.0, 0.5, 1e-9, math.nan),
            top_k=one(0, 1, vocab, 10 * vocab, BIG, -1),
            min_p=one(0.0, 1.0, 0.1),
            presence_penalty=one(0.0, 2.0, -2.0),
            frequency_penalty=one(0.0, 2.0),
            repetition_penalty=one(1.0, 0.01, 100.0),
            logit_bias=one(*biases),
            seed=one(0, 2**64 - 1),
        ),
        stop_token_ids=one([], [0], [vocab], [10 * vocab, -1], [BIG], [-vocab - 1]),
        grammar=one(*GRAMMARS),
        logprobs=one(-1, -1, 0, 20),
        prompt_logprobs=one(False, False, True),
        priority=one(0, 5, -5, BIG),
    )


def finish(host: EngineHost) -> list[FromWorker]:
    said: list[FromWorker] = []
    deadline = time.monotonic() + PATIENCE
    while host.has_work:
        assert time.monotonic() < deadline, "a request does not end"
        said += host.step()
    return said


@pytest.mark.parametrize("seed", range(2))
def test_odd_requests_are_answered_or_refused_and_no_page_is_lost(host: EngineHost, seed: int) -> None:
    chance = random.Random(seed)
    number = 0
    for _ in range(40):
        asked: dict[int, Generate] = {}
        for _ in range(chance.randrange(1, 6)):
            number += 1
            asked[number] = odd(number, chance, vocab=host.card.vocab_size, longest=host.card.max_model_len)
            host.generate(over_the_wire(asked[number]))
            if chance.random() < 0.2:
                host.cancel(Cancel(number, chance.choice([-1, 0, 1, 100])))
                del asked[number]
        said = finish(host)
        refused = {one.id for one in said if isinstance(one, Rejected)}
        steps: list[SequenceStep] = [step for one in said if isinstance(one, Step) for step in one.sequences]
        for one in asked.values():
            ended = sum(step.id == one.id and step.finish is not None for step in steps)
            assert (one.id in refused) != (ended == one.n > 0)
    host.flush()
    assert host.stats().pages_free == host.stats().pages_total


def test_a_stop_token_beyond_the_vocabulary_never_comes(host: EngineHost) -> None:
    beyond = [host.card.vocab_size, -host.card.vocab_size - 1, BIG]
    grammar = GrammarSpec("regex", "(a|b){1,3}")
    host.generate(
        Generate(
            id=1, prompt=[1], max_tokens=8, sampling=SamplingSpec(), stop_token_ids=beyond, grammar=grammar
        )
    )
    steps = [step for one in finish(host) if isinstance(one, Step) for step in one.sequences]
    assert steps[-1].finish in ("stop", "length")
