"""The reference decoder against `transformers`, and against itself in other company."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from factories.checkpoints import DECODERS, make_checkpoint
from safetensors.torch import load_file, save_file

from inferloom.errors import OutOfMemory
from inferloom.formats.checkpoint import Checkpoint
from inferloom.models.batch import Executor, RaggedBatch
from inferloom.models.loader import load

from .ragged import Bench

Make = Callable[..., Checkpoint]
PROMPT = 75  # tokens: three pages, the last one ragged, and longer than the sliding window of 48
STEPS = 32


def executor_of(checkpoint: Checkpoint, activation_dtype: str = "float32") -> Executor:
    executor = load(checkpoint, activation_dtype=activation_dtype, executor="reference")
    assert isinstance(executor, Executor)
    return executor


def reference_of(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=dtype).eval()


@torch.inference_mode()
def reference_logits(
    checkpoint: Checkpoint, tokens: list[int], dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    return reference_of(checkpoint, dtype)(torch.tensor([tokens])).logits[0].float()


@torch.inference_mode()
def reference_greedy(checkpoint: Checkpoint, prompt: list[int], steps: int) -> list[int]:
    model, tokens = reference_of(checkpoint), list(prompt)
    for _ in range(steps):
        tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens


def prompt_of(length: int, seed: int, vocab: int = 320) -> list[int]:
    return torch.randint(3, vocab, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("family", DECODERS)
def test_greedy_tokens_and_logits_equal_those_of_transformers_alone(family: str, checkpoint_of: Make) -> None:
    checkpoint = checkpoint_of(family)
    bench = Bench(executor_of(checkpoint))
    sequence = bench.sequence(prompt_of(PROMPT, 1), room=STEPS)
    bench.step((sequence, PROMPT))
    bench.generate([sequence], STEPS)

    assert sequence.tokens == reference_greedy(checkpoint, prompt_of(PROMPT, 1), STEPS)
    assert distance(sequence.all_logits, reference_logits(checkpoint, sequence.tokens)) <= 1e-4


@pytest.mark.parametrize("family", DECODERS)
def test_greedy_tokens_and_logits_equal_those_of_transformers_in_a_ragged_batch_with_chunked_prefill(
    family: str, checkpoint_of: Make
) -> None:
    checkpoint = checkpoint_of(family)
    bench = Bench(executor_of(checkpoint))
    long, short, other = (bench.sequence(prompt_of(n, n), room=STEPS) for n in (PROMPT, 9, 140))
    bench.step((long, 33), (short, 9))
    short.tokens.append(int(short.logits[-1].argmax()))
    bench.step((short, 1), (long, 40), (other, 130))
    bench.step((other, 10), (long, 1))
    bench.step((long, 1))
    bench.generate([long, other], STEPS)

    for sequence in (long, short, other):
        assert distance(sequence.all_logits, reference_logits(checkpoint, sequence.tokens)) <= 1e-4
    assert long.tokens == reference_greedy(checkpoint, prompt_of(PROMPT, PROMPT), STEPS)


@pytest.mark.parametrize("family", DECODERS)
def test_bf16_logits_stay_near_those_of_transformers(family: str, checkpoint_of: Make) -> None:
    checkpoint = checkpoint_of(family, dtype=torch.bfloat16, initializer_range=0.05)
    bench = Bench(executor_of(checkpoint, "bfloat16"))
    sequence = bench.sequence(prompt_of(PROMPT, 2))
    bench.step((sequence, 40))
    for _ in range(PROMPT - 40):
        bench.step((sequence, 1))

    theirs = reference_logits(checkpoint, sequence.tokens, torch.bfloat16)
    errors = (sequence.all_logits - theirs).abs().amax(-1) / theirs.abs().max()
    # Where two experts are nearly as good, a rounding may send a row to the other one.
    worst = errors.quantile(0.8) if family.endswith("moe") else errors.max()
    assert worst <= 2e-2


SCALINGS = {
    "linear": {"rope_type": "linear", "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    "llama3": {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}


@pytest.mark.parametrize("scaling", SCALINGS)
def test_every_rope_scaling_turns_as_in_transformers(scaling: str, checkpoint_of: Make) -> None:
    parameters = SCALINGS[scaling] | {"rope_theta": 5000.0}
    checkpoint = checkpoint_of("llama", rope_parameters=parameters)
    bench = Bench(executor_of(checkpoint))
    sequence = bench.sequence(prompt_of(100, 3))
    bench.step((sequence, 100))

    assert distance(sequence.all_logits, reference_logits(checkpoint, sequence.tokens)) <= 1e-4


LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0 + i / 10 for i in range(8)],
    "long_factor": [2.0 + i for i in range(8)],
}


@pytest.mark.parametrize("length", [64, 512])
def test_longrope_turns_as_the_longest_context_asks(length: int, checkpoint_of: Make) -> None:
    """As `transformers` turns a prompt of that kind: one that fits the original length, or one that does not."""
    checkpoint = checkpoint_of("phi3", rope_parameters=LONG, original_max_position_embeddings=64)
    executor = load(checkpoint, activation_dtype="float32", max_model_len=length)
    assert isinstance(executor, Executor)
    bench = Bench(executor)
    sequence = bench.sequence(prompt_of(60 if length == 64 else 100, 3))
    bench.step((sequence, 40))
    bench.step((sequence, len(sequence.tokens) - 40))

    assert distance(sequence.all_logits, reference_logits(checkpoint, sequence.tokens)) <= 1e-4


def test_the_first_files_of_gpt2_have_no_prefix(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path, "gpt2")
    tensors = load_file(checkpoint.weights[0])
    plain = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    plain["h.0.attn.bias"] = torch.ones(1, 1, 512, 512)  # the causal mask, which older converters wrote
    bench = Bench(executor_of(checkpoint))
    sequence = bench.sequence(prompt_of(20, 5))
    bench.step((sequence, 20))
    save_file(plain, checkpoint.weights[0])
    other = Bench(executor_of(checkpoint))
    again = other.sequence(prompt_of(20, 5))
    other.step((again, 20))

    assert torch.equal(again.all_logits, sequence.all_logits)


GEMMA3_ROPES = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 50_000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 700.0},
}


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
        ("llama", {"hidden_act": "gelu_pytorch_tanh", "num_key_value_heads": 4}),
        ("llama", {"hidden_act": "gelu", "num_key_value_heads": 1, "head_dim": 32}),
        ("mistral", {"sliding_window": None}),
        ("mistral", {"sliding_window": 7}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 40, "max_window_layers": 1}),
        ("qwen3", {"attention_bias": True}),
        ("qwen2_moe", {"norm_topk_prob": True, "qkv_bias": False, "mlp_only_layers": []}),
        ("qwen2_moe", {"use_sliding_window": True, "sliding_window": 40, "decoder_sparse_step": 2}),
        ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 40, "norm_topk_prob": False}),
        ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
        ("gemma2", {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 2.0, "attention_bias": True}),
        ("gemma3", {"final_logit_softcapping": 5.0, "layer_types": ["full_attention", "sliding_attention"]}),
        ("gemma3", {"rope_parameters": GEMMA3_ROPES}),
        ("granite", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
        ("smollm3", {"no_rope_layers": [0, 1], "use_sliding_window": True, "sliding_window": 40}),
        ("olmo2", {"attention_bias": True, "num_key_value_heads": 4}),
        ("phi3", {"sliding_window": 40, "num_key_value_heads": 4}),
        ("phi3", {"partial_rotary_factor": 0.5, "tie_word_embeddings": True}),
        ("gpt2", {"n_inner": 80, "activation_function": "gelu", "tie_word_embeddings": False}),
        ("gpt2", {"activation_function": "relu"}),
        ("gpt_neox", {"use_parallel_residual": False, "hidden_act": "gelu_fast"}),
        ("gpt_neox", {"attention_bias": False, "rotary_pct": 1.0, "tie_word_embeddings": True}),
    ],
)
def test_options_of_a_config_are_followed(
    family: str, overrides: dict[str, Any], checkpoint_of: Make
) -> None:
    checkpoint = checkpoint_of(family, **overrides)
    bench = Bench(executor_of(checkpoint))
    sequence = bench.sequence(prompt_of(300, 4))
    bench.step((sequence, 150))
    bench.step((sequence, 145))
    for _ in range(5):
        bench.step((sequence, 1))

    assert distance(sequence.all_logits, reference_logits(checkpoint, sequence.tokens)) <= 1e-4


@pytest.mark.parametrize("family", ["mistral", "qwen3", "gemma2", "qwen2_moe", "gpt2", "gpt_neox"])
def test_a_sequence_has_the_same_float32_logits_bit_for_bit_whatever_else_is_in_the_batch(
    family: str, checkpoint_of: Make
) -> None:
    executor = executor_of(checkpoint_of(family))
    bench = Bench(executor)
    prompt = prompt_of(PROMPT, 5)

    def run(company: list[int]) -> torch.Tensor:
        """The prompt in chunks of 50 and 25, then 5 tokens one by one, beside sequences of other lengths."""
        sequence = bench.sequence(prompt, room=5)
        others = [bench.sequence(prompt_of(length + 7, length)) for length in company]
        bench.step(
            *((other, other_length) for other, other_length in zip(others, company, strict=True)),
            (sequence, 50),
        )
        bench.step((sequence, 25), *((other, 1) for other in others))
        for token in prompt_of(5, 6):
            sequence.tokens.append(token)
            bench.step(
                *((other, 1) for other in others[:2]), (sequence, 1), *((other, 1) for other in others[2:])
            )
        return sequence.all_logits

    alone = run([])
    for company in ([40], [1, 2, 3], [74, 60, 31, 5, 90], [64] * 8):
        assert torch.equal(run(company), alone), f"beside {company}"


@pytest.mark.parametrize("family", DECODERS)
def test_a_chunked_prefill_gives_the_logits_of_a_whole_one(family: str, checkpoint_of: Make) -> None:
    bench = Bench(executor_of(checkpoint_of(family)))
    prompt = prompt_of(200, 7)
    whole = bench.sequence(prompt)
    bench.step((whole, 200))
    for sizes in ((100, 100), (1, 199), (31, 1, 32, 136), (199, 1)):
        chunked = bench.sequence(prompt)
        for size in sizes:
            bench.step((chunked, size))
        assert distance(chunked.all_logits, whole.all_logits) <= 1e-5
        assert torch.equal(chunked.all_logits.argmax(-1), whole.all_logits.argmax(-1))


def test_logits_are_computed_for_the_asked_rows_only_and_are_float32(checkpoint_of: Make) -> None:
    executor = executor_of(checkpoint_of("llama"))
    executor.allocate_kv(4)
    prompt = prompt_of(20, 8)
    batch = (prompt, list(range(20)), [0, 20], [20], [[2]])
    whole = executor.forward(RaggedBatch(*batch, list(range(20))))
    some = executor.forward(RaggedBatch(*batch, [3, 19]))
    none = executor.forward(RaggedBatch(*batch, []))

    assert some.dtype == torch.float32
    assert torch.equal(some, whole[[3, 19]])
    assert none.shape == (0, executor.vocab_size)


def test_a_copied_page_carries_the_context_on(checkpoint_of: Make) -> None:
    executor = executor_of(checkpoint_of("qwen2"))
    executor.allocate_kv(6)
    prompt = prompt_of(41, 9)
    executor.forward(RaggedBatch(prompt[:40], list(range(40)), [0, 40], [40], [[0, 1]], []))
    executor.copy_page(1, 4)
    step = (prompt[40:], [40], [0, 1], [41])
    copied = executor.forward(RaggedBatch(*step, [[0, 4]], [0]))
    own = executor.forward(RaggedBatch(*step, [[0, 1]], [0]))

    assert torch.equal(copied, own)


def test_what_a_page_held_before_harms_nobody(checkpoint_of: Make) -> None:
    """Not even NaN, which a masked position would carry into the sum."""
    executor = executor_of(checkpoint_of("llama"))
    bench = Bench(executor, pages=3)
    prompt = prompt_of(70, 10)
    clean = bench.sequence(prompt)
    bench.step((clean, 69))
    bench.step((clean, 1))
    for pool in executor._pools:  # type: ignore[attr-defined]
        pool.fill_(float("nan"))
    again = bench.sequence(prompt)
    bench.step((again, 69))
    bench.step((again, 1))

    assert torch.equal(again.all_logits, clean.all_logits)


def test_a_pool_that_does_not_fit_says_how_large_it_was(checkpoint_of: Make) -> None:
    executor = executor_of(checkpoint_of("llama"))
    with pytest.raises(
        OutOfMemory, match=r"out of memory: \d+ KV pages of 16,384 bytes \(.* GiB\).*max_model_len"
    ):
        executor.allocate_kv(2**48)


def test_a_page_takes_the_bytes_it_says(checkpoint_of: Make) -> None:
    executor = executor_of(checkpoint_of("qwen3"))
    executor.allocate_kv(5)
    assert sum(pool.nbytes for pool in executor._pools) == 5 * executor.kv_bytes_per_page  # type: ignore[attr-defined]
