"""The native step against the reference decoder and `transformers`, and against itself in other company."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from factories.checkpoints import DECODERS

from inferloom.errors import OutOfMemory
from inferloom.formats.checkpoint import Checkpoint
from inferloom.kernels.native import library
from inferloom.models.batch import PAGE_SIZE, Executor, RaggedBatch
from inferloom.models.loader import load
from inferloom.models.native import NativeDecoder, supports
from inferloom.models.spec import DecoderSpec

from .ragged import Bench, Sequence
from .test_decoder import distance, prompt_of, reference_logits

Make = Callable[..., Checkpoint]
MIXTURES = ("qwen2_moe", "qwen3_moe")
NATIVE = [family for family in DECODERS if family not in MIXTURES]
NEAR = 2e-2  # of the largest logit: what bfloat16 products cost a random model of two layers


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def native_of(checkpoint: Checkpoint, *, count: int = 2) -> NativeDecoder:
    with threads(count):
        executor = load(checkpoint, activation_dtype="bfloat16")
    assert isinstance(executor, NativeDecoder), executor.card
    assert executor.threads == count
    return executor


def reference_executor(checkpoint: Checkpoint, dtype: str = "float32") -> Executor:
    executor = load(checkpoint, activation_dtype=dtype, executor="reference")
    assert isinstance(executor, Executor)
    return executor


def small(family: str, checkpoint_of: Make, **overrides: Any) -> Checkpoint:
    return checkpoint_of(family, dtype=torch.bfloat16, **({"initializer_range": 0.05} | overrides))


@pytest.mark.parametrize("family", NATIVE)
def test_logits_are_near_those_of_transformers_and_of_the_reference(family: str, checkpoint_of: Make) -> None:
    checkpoint = small(family, checkpoint_of)
    logits = []
    for executor in (native_of(checkpoint), reference_executor(checkpoint)):
        bench = Bench(executor)
        sequence = bench.sequence(prompt_of(300, 1))
        bench.step((sequence, 170))
        bench.step((sequence, 120))
        for _ in range(10):
            bench.step((sequence, 1))
        logits.append(sequence.all_logits)

    assert distance(logits[0], logits[1]) <= NEAR
    assert distance(logits[0], reference_logits(checkpoint, prompt_of(300, 1))) <= NEAR


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
        ("llama", {"hidden_act": "gelu_pytorch_tanh", "num_key_value_heads": 4}),
        ("llama", {"hidden_act": "gelu", "num_key_value_heads": 1, "head_dim": 32}),
        ("llama", {"hidden_size": 72, "intermediate_size": 200, "head_dim": 48, "num_attention_heads": 6}),
        ("mistral", {"sliding_window": None}),
        ("mistral", {"sliding_window": 7}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 40, "max_window_layers": 1}),
        ("qwen3", {"attention_bias": True, "tie_word_embeddings": False}),
    ],
)
def test_options_of_a_config_are_followed(
    family: str, overrides: dict[str, Any], checkpoint_of: Make
) -> None:
    checkpoint = small(family, checkpoint_of, **overrides)
    bench = Bench(native_of(checkpoint))
    sequence = bench.sequence(prompt_of(200, 4))
    bench.step((sequence, 150))
    bench.step((sequence, 45))
    for _ in range(5):
        bench.step((sequence, 1))

    assert distance(sequence.all_logits, reference_logits(checkpoint, sequence.tokens)) <= NEAR


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weights_of_other_float_types_are_used_as_they_are(dtype: torch.dtype, checkpoint_of: Make) -> None:
    checkpoint = checkpoint_of("qwen2", dtype=dtype, initializer_range=0.05)
    bench = Bench(native_of(checkpoint))
    sequence = bench.sequence(prompt_of(80, 2))
    bench.step((sequence, 80))

    # Queries, keys, values and attention weights alone are rounded to bfloat16.
    assert distance(sequence.all_logits, reference_logits(checkpoint, sequence.tokens)) <= NEAR / 4


class Company:
    """A prompt in chunks, then tokens one by one, beside other sequences."""

    def __init__(self, executor: Executor, *, pages: int = 400) -> None:
        self._bench = Bench(executor, pages=pages)
        self._prompt = prompt_of(75, 5)

    def run(self, others: list[int], chunks: tuple[int, ...] = (50, 25)) -> torch.Tensor:
        bench = self._bench
        sequence = bench.sequence(self._prompt, room=5)
        company = [bench.sequence(prompt_of(length + 11, length)) for length in others]
        bench.step(*zip(company, others, strict=True), (sequence, chunks[0]))
        for chunk in chunks[1:]:
            bench.step((sequence, chunk), *((other, 1) for other in company))
        for token in prompt_of(5, 6):
            sequence.tokens.append(token)
            bench.step(
                *((other, 1) for other in company[:2]), (sequence, 1), *((other, 1) for other in company[2:])
            )
        return sequence.all_logits


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3"])
def test_a_sequence_has_the_same_logits_bit_for_bit_whatever_else_is_in_the_batch(
    family: str, checkpoint_of: Make
) -> None:
    company = Company(native_of(small(family, checkpoint_of)))
    alone = company.run([])
    for others in ([40], [1, 2, 3], [74, 60, 31, 5, 90], [30] * 15):
        assert torch.equal(company.run(others), alone), f"beside {others}"


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3"])
def test_a_chunked_prefill_gives_the_logits_of_a_whole_one_bit_for_bit(
    family: str, checkpoint_of: Make
) -> None:
    company = Company(native_of(small(family, checkpoint_of)))
    whole = company.run([], (75,))
    for chunks in ((50, 25), (1, 74), (31, 1, 32, 11), (74, 1)):
        assert torch.equal(company.run([], chunks), whole), chunks


@pytest.mark.parametrize("family", ["mistral", "qwen3"])
def test_the_number_of_threads_changes_no_bit(family: str, checkpoint_of: Make) -> None:
    checkpoint = small(family, checkpoint_of)
    one, *more = (Company(native_of(checkpoint, count=count)).run([3, 60]) for count in (1, 2, 3, 7))
    for other in more:
        assert torch.equal(other, one)


def test_contexts_of_several_splits_have_the_same_bits_for_any_number_of_threads_and_rows(
    checkpoint_of: Make,
) -> None:
    checkpoint = small("qwen3", checkpoint_of, max_position_embeddings=4096)
    prompt = prompt_of(2300, 12)
    results = []
    for count, chunks in ((1, (2300,)), (2, (2299, 1)), (3, (1020, 1277, 2, 1))):
        bench = Bench(native_of(checkpoint, count=count), pages=80)
        sequence = bench.sequence(prompt)
        for chunk in chunks:
            bench.step((sequence, chunk))
        results.append(sequence.all_logits[-1])
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    assert distance(results[0], reference_logits(checkpoint, prompt)[-1]) <= NEAR


def test_two_hundred_random_steps_stay_near_the_reference(checkpoint_of: Make) -> None:
    """Sequences come, grow in chunks and one by one, share a prefix's pages and go."""
    draw = random.Random(7)
    checkpoint = small("mistral", checkpoint_of)
    executors = (native_of(checkpoint), reference_executor(checkpoint))
    pages = 120
    for executor in executors:
        executor.allocate_kv(pages)
    free = list(range(pages))
    draw.shuffle(free)
    running: list[Sequence] = []
    worst = 0.0
    for _ in range(200):
        while len(running) < draw.randint(1, 6) and len(free) >= 8:
            tokens = [draw.randrange(3, 320) for _ in range(draw.randint(1, 120))]
            running.append(Sequence(tokens, []))
        parts: list[tuple[Sequence, int]] = []
        for sequence in running:
            left = len(sequence.tokens) - sequence.computed
            if not left:
                sequence.tokens.append(draw.randrange(3, 320))
            parts.append((sequence, draw.randint(1, min(left, 60)) if left > 1 else 1))
            while len(sequence.pages) * PAGE_SIZE < sequence.computed + parts[-1][1]:
                sequence.pages.append(free.pop())
        batch = batch_of(parts, every=draw.choice([1, 1, 3]))
        native, reference = (executor.forward(batch).clone() for executor in executors)
        if len(reference):
            worst = max(worst, distance(native, reference))
        for sequence, count in parts:
            sequence.computed += count
        for sequence in [s for s in running if len(s.pages) > 6 or draw.random() < 0.05]:
            running.remove(sequence)
            free += sequence.pages
    assert worst <= NEAR


def batch_of(parts: list[tuple[Sequence, int]], *, every: int = 1) -> RaggedBatch:
    """The next tokens of each sequence, logits of every nth row."""
    batch = RaggedBatch([], [], [0], [], [], [])
    for sequence, count in parts:
        end = sequence.computed + count
        batch.token_ids.extend(sequence.tokens[sequence.computed : end])
        batch.positions.extend(range(sequence.computed, end))
        batch.starts.append(len(batch.token_ids))
        batch.context_lens.append(end)
        batch.page_tables.append(sequence.pages[: -(-end // PAGE_SIZE)])
    batch.logit_rows.extend(range(0, len(batch.token_ids), every))
    return batch


def test_pages_of_a_shared_prefix_serve_all_who_share_them(checkpoint_of: Make) -> None:
    bench = Bench(native_of(small("llama", checkpoint_of)))
    first = bench.sequence(prompt_of(64, 13) + prompt_of(20, 14))
    second = bench.sequence(prompt_of(64, 13) + prompt_of(20, 15))
    bench.step((first, 84))
    bench.step((second, 84))
    shared = Sequence(second.tokens, first.pages[:2] + second.pages[2:], computed=64)
    bench.step((shared, 20))

    assert torch.equal(shared.all_logits, second.all_logits[64:])


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma2"])
def test_logits_are_computed_for_the_asked_rows_only(family: str, checkpoint_of: Make) -> None:
    executor = native_of(small(family, checkpoint_of))
    executor.allocate_kv(4)
    prompt = prompt_of(20, 8)
    batch = (prompt, list(range(20)), [0, 20], [20], [[2]])
    whole = executor.forward(RaggedBatch(*batch, list(range(20)))).clone()
    for rows in ([3, 19], [19], [19, 0, 19], list(range(20)) + [5]):
        assert torch.equal(executor.forward(RaggedBatch(*batch, rows)), whole[rows]), rows
    assert executor.forward(RaggedBatch(*batch, [])).shape == (0, executor.vocab_size)


def test_a_copied_page_carries_the_context_on(checkpoint_of: Make) -> None:
    executor = native_of(small("qwen2", checkpoint_of))
    executor.allocate_kv(6)
    prompt = prompt_of(41, 9)
    executor.forward(RaggedBatch(prompt[:40], list(range(40)), [0, 40], [40], [[0, 1]], []))
    executor.copy_page(1, 4)
    step = (prompt[40:], [40], [0, 1], [41])
    copied = executor.forward(RaggedBatch(*step, [[0, 4]], [0])).clone()
    own = executor.forward(RaggedBatch(*step, [[0, 1]], [0]))

    assert torch.equal(copied, own)


def test_what_a_page_held_before_harms_nobody(checkpoint_of: Make) -> None:
    """Not even NaN, which a masked position would carry into the sum."""
    executor = native_of(small("llama", checkpoint_of))
    bench = Bench(executor, pages=3)
    prompt = prompt_of(70, 10)
    clean = bench.sequence(prompt)
    bench.step((clean, 69))
    bench.step((clean, 1))
    executor._pool[:] = 0xFF
    again = bench.sequence(prompt)
    bench.step((again, 69))
    bench.step((again, 1))

    assert torch.equal(again.all_logits, clean.all_logits)


def test_a_pool_that_does_not_fit_says_how_large_it_was(checkpoint_of: Make) -> None:
    executor = native_of(small("llama", checkpoint_of))
    with pytest.raises(OutOfMemory, match=r"\d+ KV pages of 8,192 bytes \(.* GiB\).*max_model_len"):
        executor.allocate_kv(2**48)


def test_a_page_takes_the_bytes_it_says(checkpoint_of: Make) -> None:
    executor = native_of(small("qwen3", checkpoint_of))
    executor.allocate_kv(5)
    assert executor._pool.nbytes == 5 * executor.kv_bytes_per_page


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_ids": [1, 320]}, "vocabulary"),
        ({"token_ids": [1, -1]}, "vocabulary"),
        ({"page_tables": [[4]]}, "pool"),
        ({"page_tables": [[]]}, "too short"),
        ({"logit_rows": [2]}, "logit row"),
        ({"starts": [0, 1]}, "cover"),
        ({"context_lens": [1]}, "more rows than context"),
    ],
)
def test_a_batch_that_does_not_hold_together_is_refused(
    change: dict[str, Any], message: str, checkpoint_of: Make
) -> None:
    executor = native_of(small("llama", checkpoint_of))
    executor.allocate_kv(4)
    good: dict[str, Any] = {
        "token_ids": [1, 2],
        "positions": [0, 1],
        "starts": [0, 2],
        "context_lens": [2],
        "page_tables": [[0]],
        "logit_rows": [1],
    }
    executor.forward(RaggedBatch(**good))
    with pytest.raises(ValueError, match=message):
        executor.forward(RaggedBatch(**(good | change)))


def test_the_profile_has_every_stage_and_the_time_of_every_thread(checkpoint_of: Make) -> None:
    executor = native_of(small("llama", checkpoint_of))
    bench = Bench(executor)
    sequence = bench.sequence(prompt_of(40, 3))
    executor.start_profile()
    bench.step((sequence, 39))
    bench.step((sequence, 1))
    stages = executor.stop_profile()

    assert set(stages) == {
        "embed", "norm", "qkv", "heads", "attention", "convert", "output", "gated", "down", "logits", "wait"
    }  # fmt: skip
    assert all(len(times) == 2 for times in stages.values())
    assert all(sum(stages[name]) > 0 for name in ("qkv", "attention", "down", "logits"))
    assert executor.scratch_bytes > 0


_LOGITS = """
import sys, torch
from inferloom.formats.checkpoint import Checkpoint
from inferloom.models.batch import RaggedBatch
from inferloom.models.loader import load
folder, weights, out = sys.argv[1:]
torch.set_num_threads(2)
executor = load(Checkpoint(source=folder, name="m", folder=folder, weights=(weights,), format="safetensors"), activation_dtype="bfloat16")
executor.allocate_kv(4)
ids = [(7 * i) % 300 + 3 for i in range(70)]
logits = executor.forward(RaggedBatch(ids, list(range(70)), [0, 70], [70], [[2, 0, 3]], list(range(70)))).clone()
torch.save({"isa": executor.isa, "card": executor.card.executor, "logits": logits}, out)
"""


@pytest.mark.parametrize("isa", library.load().isas())
def test_every_instruction_set_computes_the_same_model(isa: str, checkpoint_of: Make, tmp_path: Path) -> None:
    checkpoint = small("qwen3", checkpoint_of)
    out = tmp_path / "out.pt"
    program = [sys.executable, "-c", _LOGITS, checkpoint.folder, checkpoint.weights[0], str(out)]
    subprocess.run(program, check=True, timeout=120, env={**os.environ, "INFERLOOM_ISA": isa})
    result = torch.load(out)

    assert result["isa"] == isa
    assert result["card"] == f"native ({isa})"
    ids = [(7 * i) % 300 + 3 for i in range(70)]
    assert distance(result["logits"], reference_logits(checkpoint, ids)) <= NEAR


def test_what_the_step_does_not_know_runs_operator_by_operator_or_on_the_reference_and_the_card_says_why(
    checkpoint_of: Make,
) -> None:
    model = load(checkpoint_of("qwen3_moe", dtype=torch.bfloat16), activation_dtype="bfloat16")
    assert model.card.executor == (
        f"operator by operator ({library.isa()}): the native step knows no mixture of experts"
    )
    model = load(checkpoint_of("llama"), activation_dtype="float32")
    assert model.card.executor == (
        "reference (torch): activation_dtype is float32; the native operators compute in bfloat16"
    )


@pytest.mark.parametrize("head_dim", [24, 272])
def test_heads_of_other_sizes_are_left_to_the_reference(head_dim: int) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"], "vocab_size": 8, "hidden_size": 64, "intermediate_size": 64,
        "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": head_dim, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    spec = DecoderSpec.from_config(config)
    why = supports(spec, dtype=torch.bfloat16, device=torch.device("cpu"))
    assert why is not None and f"heads of {head_dim} elements" in why


def test_a_step_inside_a_parallel_region_of_fewer_threads_is_right(checkpoint_of: Make) -> None:
    """OMP_THREAD_LIMIT gives one thread where two are asked for."""
    checkpoint = small("llama", checkpoint_of)
    bench = Bench(native_of(checkpoint))
    sequence = bench.sequence(prompt_of(60, 3))
    bench.step((sequence, 60))
    program = (
        "import sys, torch; from inferloom.formats.checkpoint import Checkpoint;"
        "from inferloom.models.batch import RaggedBatch; from inferloom.models.native import NativeDecoder;"
        "from inferloom.models.loader import load; folder, weights, out = sys.argv[1:]; torch.set_num_threads(2);"
        "executor = load(Checkpoint(source=folder, name='m', folder=folder, weights=(weights,), format='safetensors'), activation_dtype='bfloat16');"
        f"executor.allocate_kv(2); ids = {prompt_of(60, 3)!r};"
        "torch.save(executor.forward(RaggedBatch(ids, list(range(60)), [0, 60], [60], [[0, 1]], list(range(60)))), out)"
    )
    out = Path(checkpoint.folder) / "limited.pt"
    subprocess.run(
        [sys.executable, "-c", program, checkpoint.folder, checkpoint.weights[0], str(out)],
        check=True, timeout=120, env={**os.environ, "OMP_THREAD_LIMIT": "1"},
    )  # fmt: skip
    assert torch.equal(torch.load(out), sequence.all_logits)


def test_page_tables_may_be_longer_than_the_context(checkpoint_of: Make) -> None:
    executor = native_of(small("llama", checkpoint_of))
    executor.allocate_kv(4)
    batches = [RaggedBatch([5, 6], [0, 1], [0, 2], [2], [table], [0, 1]) for table in ([1], [1, 3, 2])]
    short, long = (executor.forward(batch).clone() for batch in batches)
    assert torch.equal(short, long)
    assert len(set(itertools.chain.from_iterable(short.tolist()))) > 1
