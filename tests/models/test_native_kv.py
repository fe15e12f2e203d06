"""Keys and values in int8 pages: half the memory, near the plain ones, and the same bits in any company."""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from factories.checkpoints import make_checkpoint
from factories.divergence import Reference, Runner
from tokenizers import Tokenizer

from inferloom.errors import Unsupported
from inferloom.formats.checkpoint import Checkpoint
from inferloom.models.batch import Executor, RaggedBatch
from inferloom.models.loader import load
from inferloom.models.native import NativeDecoder

from .ragged import Bench, Sequence
from .test_decoder import distance, prompt_of
from .test_native_decoder import NATIVE, Company, small, threads

Make = Callable[..., Checkpoint]
NEAR = 3e-2  # of the largest logit, from bfloat16 pages: a random model's keys and values, rounded to 8 bits
LENGTH, BEGIN = 256, 32  # of the texts along which distributions are compared


def int8_of(checkpoint: Checkpoint, *, count: int = 2) -> NativeDecoder:
    with threads(count):
        executor = load(checkpoint, kv_dtype="int8")
    assert isinstance(executor, NativeDecoder), executor.card
    return executor


def plain_of(checkpoint: Checkpoint) -> Executor:
    executor = load(checkpoint)
    assert isinstance(executor, Executor)
    return executor


@pytest.mark.parametrize("family", NATIVE)
def test_logits_are_near_those_of_plain_pages(family: str, checkpoint_of: Make) -> None:
    checkpoint = small(family, checkpoint_of)
    logits = []
    for executor in (int8_of(checkpoint), plain_of(checkpoint)):
        bench = Bench(executor)
        sequence = bench.sequence(prompt_of(200, 1))
        for count in (120, 75, 1, 1, 1, 1, 1):
            bench.step((sequence, count))
        logits.append(sequence.all_logits)

    assert 0 < distance(logits[0], logits[1]) <= NEAR


@pytest.mark.parametrize("size", [64, 128])
def test_a_page_takes_half_the_bytes_and_the_scales(size: int, checkpoint_of: Make) -> None:
    checkpoint = small("qwen3", checkpoint_of, head_dim=size)
    plain, int8 = plain_of(checkpoint), int8_of(checkpoint)
    scales = 2 * 2 * 2 * 32 * 4  # layers × heads × keys and values × tokens × float32
    assert int8.kv_bytes_per_page == plain.kv_bytes_per_page // 2 + scales
    int8.allocate_kv(5)
    assert int8._pool.nbytes == 5 * int8.kv_bytes_per_page
    assert (plain.card.kv_dtype, int8.card.kv_dtype) == ("bfloat16", "int8")


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "olmo2"])
def test_a_sequence_has_the_same_bits_in_any_company_cut_and_number_of_threads(
    family: str, checkpoint_of: Make
) -> None:
    checkpoint = small(family, checkpoint_of)
    company = Company(int8_of(checkpoint))
    alone = company.run([])
    for others in ([40], [74, 60, 31, 5, 90], [30] * 15):
        assert torch.equal(company.run(others), alone), f"beside {others}"
    for chunks in ((75,), (1, 74), (31, 1, 32, 11)):
        assert torch.equal(company.run([], chunks), alone), chunks
    for count in (1, 3):
        assert torch.equal(Company(int8_of(checkpoint, count=count)).run([3, 60]), alone), f"{count} threads"


def test_contexts_of_several_splits_have_the_same_bits(checkpoint_of: Make) -> None:
    checkpoint = small("qwen3", checkpoint_of, max_position_embeddings=4096)
    results = []
    for count, chunks in ((1, (2300,)), (2, (2299, 1)), (3, (1020, 1277, 2, 1))):
        bench = Bench(int8_of(checkpoint, count=count), pages=80)
        sequence = bench.sequence(prompt_of(2300, 12))
        for chunk in chunks:
            bench.step((sequence, chunk))
        results.append(sequence.all_logits[-1])
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("byte", [0xFF, 0x7F])
def test_what_a_page_held_before_harms_nobody(byte: int, checkpoint_of: Make) -> None:
    """Neither scales that are NaN nor such as are huge."""
    executor = int8_of(small("llama", checkpoint_of))
    bench = Bench(executor, pages=3)
    prompt = prompt_of(70, 10)
    clean, again = bench.sequence(prompt), bench.sequence(prompt)
    for sequence in (clean, again):
        for count in (61, 8, 1):
            bench.step((sequence, count))
        executor._pool[:] = byte

    assert torch.equal(again.all_logits, clean.all_logits)


def test_rejected_tokens_leave_no_trace(checkpoint_of: Make) -> None:
    """What a draft wrote past the end is written over, pair by pair and scale by scale."""
    bench = Bench(int8_of(small("llama", checkpoint_of)))
    prompt = prompt_of(75, 3)
    plain, drafted = bench.sequence(prompt), bench.sequence(prompt[:40] + prompt_of(35, 99))
    bench.step((plain, 75))
    bench.step((drafted, 75))
    drafted.tokens, drafted.computed, drafted.logits = list(prompt), 40, drafted.logits[:40]
    for count in (1, 2, 31, 1):
        bench.step((drafted, count))

    assert torch.equal(drafted.all_logits, plain.all_logits)


def test_shared_and_copied_pages_carry_a_context_on(checkpoint_of: Make) -> None:
    executor = int8_of(small("qwen2", checkpoint_of))
    bench = Bench(executor)
    first = bench.sequence(prompt_of(41, 13) + prompt_of(20, 14))
    second = bench.sequence(prompt_of(41, 13) + prompt_of(20, 15))
    bench.step((first, 61))
    bench.step((second, 61))
    pages = bench.sequence(prompt_of(61, 0)).pages
    executor.copy_page(first.pages[1], pages[1])  # its tail: nine tokens of the second page are shared
    forked = Sequence(second.tokens, [first.pages[0], *pages[1:]], computed=41)
    bench.step((forked, 20))

    assert torch.equal(forked.all_logits, second.all_logits[41:])


def test_the_chat_starter_hardly_notices(smollm2_checkpoint: Checkpoint) -> None:
    """Along the standard library's docstrings: mean KL divergence 0.003 nats and the same first choice for 97 % of the
    tokens, where its 8-bit activations alone cost 0.002 nats."""
    texts = list(docstrings(Path(smollm2_checkpoint.folder) / "tokenizer.json"))
    plain, int8 = (
        Runner(executor, sequences=1, length=LENGTH)
        for executor in (plain_of(smollm2_checkpoint), int8_of(smollm2_checkpoint))
    )
    divergence = Reference(plain, texts, BEGIN).divergence(int8)
    agreed = [plain.logits(text, BEGIN).argmax(-1) == int8.logits(text, BEGIN).argmax(-1) for text in texts]

    assert float(divergence.mean()) < 0.006
    assert float(torch.cat(agreed).float().mean()) > 0.95


def docstrings(tokenizer_json: Path) -> Iterator[list[int]]:
    """Texts of LENGTH tokens."""
    tokenizer = Tokenizer.from_file(str(tokenizer_json))
    for module in ("argparse", "optparse", "random", "statistics"):
        source = Path(sysconfig.get_path("stdlib"), f"{module}.py").read_text(encoding="utf-8")
        nodes = ast.walk(ast.parse(source))
        found = [
            ast.get_docstring(node)
            for node in nodes
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        ]
        tokens = tokenizer.encode("\n\n".join(text for text in found if text), add_special_tokens=False).ids
        yield tokens[:LENGTH]


@pytest.mark.parametrize(
    ("family", "options", "reason"),
    [
        ("llama", {"activation_dtype": "float32"}, "the native operators compute in bfloat16"),
        ("llama", {"executor": "reference"}, "asked for"),
        ("qwen2_moe", {}, "mixture of experts"),
        ("opt", {}, "no decoder of its own for OPTForCausalLM"),
        ("bert", {}, "it makes embeddings and keeps no keys and values"),
    ],
)
def test_executors_without_int8_pages_refuse_them(
    family: Any, options: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(tmp_path / "m", family)
    with pytest.raises(Unsupported, match=rf"kv_dtype 'int8' for m is not supported: .*{reason}"):
        load(checkpoint, kv_dtype="int8", **options)


def test_a_batch_without_logits_still_writes_its_pages(checkpoint_of: Make) -> None:
    executor = int8_of(small("llama", checkpoint_of))
    executor.allocate_kv(3)
    prompt = prompt_of(41, 9)
    executor.forward(RaggedBatch(prompt[:40], list(range(40)), [0, 40], [40], [[0, 1]], []))
    cut = executor.forward(RaggedBatch(prompt[40:], [40], [0, 1], [41], [[0, 1]], [0])).clone()
    whole = executor.forward(RaggedBatch(prompt, list(range(41)), [0, 41], [41], [[2, 0]], [40]))

    assert torch.equal(cut, whole)
