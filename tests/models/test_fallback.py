"""Decoders that run through `transformers` modules over our pages: right, shared, copied, or refused with the reason."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
import transformers
from engine.driving import drive
from factories.checkpoints import FOREIGN, make_checkpoint
from safetensors.torch import load_file, save_file

from inferloom.engine.engine import Engine
from inferloom.engine.messages import Generate, SamplingSpec
from inferloom.errors import InvalidFormat, LoadFailed, Unsupported
from inferloom.formats.checkpoint import Checkpoint
from inferloom.models.batch import Executor, RaggedBatch
from inferloom.models.fallback import FallbackDecoder
from inferloom.models.loader import load

from .ragged import Bench
from .test_decoder import distance, executor_of, prompt_of, reference_greedy, reference_logits

Make = Callable[..., Checkpoint]


def saved(folder: Path, model: Any) -> Checkpoint:
    """A checkpoint of weights and configuration alone."""
    model.eval().save_pretrained(folder)
    return Checkpoint(
        source=str(folder),
        name="model",
        folder=str(folder),
        weights=(str(folder / "model.safetensors"),),
        format="safetensors",
    )


@pytest.mark.parametrize("family", FOREIGN)
def test_logits_and_greedy_tokens_equal_those_of_transformers_in_chunks_and_ragged_batches(
    family: str, checkpoint_of: Make
) -> None:
    checkpoint = checkpoint_of(family)
    executor = executor_of(checkpoint)
    assert isinstance(executor, FallbackDecoder)
    bench = Bench(executor)
    long, short = bench.sequence(prompt_of(75, 1), room=16), bench.sequence(prompt_of(9, 2))
    bench.step((long, 33), (short, 9))
    bench.step((long, 42))
    bench.generate([long], 16)

    assert long.tokens == reference_greedy(checkpoint, prompt_of(75, 1), 16)
    for sequence in (long, short):
        assert (
            distance(sequence.all_logits, reference_logits(checkpoint, sequence.tokens[: sequence.computed]))
            <= 1e-4
        )


@pytest.mark.parametrize("family", FOREIGN)
def test_an_engine_with_shared_prefixes_answers_as_transformers_does(
    family: str, checkpoint_of: Make
) -> None:
    checkpoint = checkpoint_of(family)
    shared = prompt_of(70, 3)
    prompts = [[*shared, *prompt_of(n, n)] for n in (1, 7, 40)] + [shared[:20], prompt_of(50, 4)]
    engine = Engine(executor_of(checkpoint), pages=24, max_batch_tokens=64)
    greedy = SamplingSpec(temperature=0)
    answers = drive(engine, [Generate(i, prompt, 12, greedy) for i, prompt in enumerate(prompts)])
    later = drive(engine, [Generate(9, prompts[2], 12, greedy, n=2)])

    assert engine.stats().prompt_tokens_cached > 0
    for i, prompt in enumerate(prompts):
        assert prompt + answers[i, 0].tokens == reference_greedy(checkpoint, prompt, 12)
    assert later[9, 0].tokens == later[9, 1].tokens == answers[2, 0].tokens


def test_a_sequence_has_the_same_bits_whatever_else_is_in_the_batch(checkpoint_of: Make) -> None:
    bench = Bench(executor_of(checkpoint_of("stablelm")))
    prompt = prompt_of(50, 5)
    alone, beside, other = bench.sequence(prompt), bench.sequence(prompt), bench.sequence(prompt_of(90, 6))
    bench.step((alone, 49))
    bench.step((alone, 1))
    bench.step((other, 80), (beside, 49))
    bench.step((other, 1), (beside, 1))
    assert torch.equal(alone.all_logits, beside.all_logits)


def test_logits_come_in_the_order_they_are_asked_for(checkpoint_of: Make) -> None:
    executor = executor_of(checkpoint_of("opt"))
    executor.allocate_kv(4)
    tokens = prompt_of(12, 7)
    batch = (tokens, [*range(8), *range(4)], [0, 8, 12], [8, 4], [[2], [3]])
    whole = executor.forward(RaggedBatch(*batch, list(range(12))))
    some = executor.forward(RaggedBatch(*batch, [11, 0, 7]))
    none = executor.forward(RaggedBatch(*batch, []))

    assert distance(some, whole[[11, 0, 7]]) <= 1e-6
    assert none.shape == (0, executor.vocab_size)


def test_a_copied_page_carries_the_context_on(checkpoint_of: Make) -> None:
    executor = executor_of(checkpoint_of("falcon"))
    executor.allocate_kv(6)
    prompt = prompt_of(41, 9)
    executor.forward(RaggedBatch(prompt[:40], list(range(40)), [0, 40], [40], [[0, 1]], []))
    executor.copy_page(1, 4)
    step = (prompt[40:], [40], [0, 1], [41])
    copied = executor.forward(RaggedBatch(*step, [[0, 4]], [0]))
    assert torch.equal(copied, executor.forward(RaggedBatch(*step, [[0, 1]], [0])))


def test_the_card_says_who_runs_it_and_why(checkpoint_of: Make) -> None:
    card = executor_of(checkpoint_of("cohere")).card
    assert card.executor == (
        f"transformers {transformers.__version__}: this engine has no decoder of its own for CohereForCausalLM"
    )
    assert (card.architecture, card.vocab_size, card.max_model_len) == ("CohereForCausalLM", 320, 512)
    assert card.parameters > 0 and card.weight_bytes == 4 * card.parameters


def test_an_option_that_our_decoder_lacks_runs_through_transformers(checkpoint_of: Make) -> None:
    checkpoint = checkpoint_of("llama", hidden_act="relu2")
    executor = executor_of(checkpoint)
    assert "hidden_act 'relu2'" in executor.card.executor
    bench = Bench(executor)
    sequence = bench.sequence(prompt_of(20, 8))
    bench.step((sequence, 20))
    assert distance(sequence.all_logits, reference_logits(checkpoint, sequence.tokens)) <= 1e-4


def test_a_limit_is_kept_and_one_beyond_the_model_refused(checkpoint_of: Make) -> None:
    assert executor_of_length(checkpoint_of("opt"), 100).card.max_model_len == 100
    with pytest.raises(LoadFailed, match="max_model_len is 1000, but the checkpoint's positions end at 512"):
        executor_of_length(checkpoint_of("opt"), 1000)


def executor_of_length(checkpoint: Checkpoint, length: int) -> Executor:
    executor = load(checkpoint, activation_dtype="float32", max_model_len=length)
    assert isinstance(executor, Executor)
    return executor


def test_bf16_logits_stay_near_those_of_transformers(checkpoint_of: Make) -> None:
    checkpoint = checkpoint_of("stablelm", dtype=torch.bfloat16, initializer_range=0.05)
    bench = Bench(executor_of(checkpoint, "bfloat16"))
    sequence = bench.sequence(prompt_of(60, 2))
    bench.step((sequence, 40))
    bench.step((sequence, 20))
    theirs = reference_logits(checkpoint, sequence.tokens, torch.bfloat16)
    assert distance(sequence.all_logits, theirs) <= 2e-2


def test_a_quantisation_that_cannot_be_followed_is_refused(checkpoint_of: Make) -> None:
    packed = msgspec.structs.replace(checkpoint_of("opt"), quantization="int8")
    with pytest.raises(Unsupported, match=r"quantised weights.*no decoder of its own for OPTForCausalLM"):
        load(packed)


SMALL = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2}


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        ("MambaForCausalLM", {**SMALL, "state_size": 4}, "keeps a state"),
        ("RwkvForCausalLM", SMALL, "keeps a state"),
        (
            "Lfm2ForCausalLM",
            {
                **SMALL,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "layer_types": ["conv", "full_attention"],
            },
            "keep a state",
        ),
        ("BertLMHeadModel", {**SMALL, "num_attention_heads": 2, "intermediate_size": 48}, "it is an encoder"),
        (
            "T5ForConditionalGeneration",
            {"vocab_size": 99, "d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 1, "num_heads": 2},
            "encoder-decoder models come with a later version",
        ),
    ],
)
def test_what_is_no_decoder_over_keys_and_values_is_refused_with_the_reason(
    name: str, config: dict[str, Any], words: str, tmp_path: Path
) -> None:
    kind = getattr(transformers, name)
    with pytest.raises(Unsupported, match=f"{name}.*{words}"):
        load(saved(tmp_path, kind(kind.config_class(**config))))


def test_without_transformers_the_error_names_the_extra(
    checkpoint_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "transformers":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(LoadFailed, match=r"install inferloom\[transformers\]"):
        load(checkpoint_of("opt"))


def test_a_tensor_that_is_missing_is_named(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path, "stablelm")
    tensors = load_file(checkpoint.weights[0])
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, checkpoint.weights[0], metadata={"format": "pt"})
    with pytest.raises(
        InvalidFormat, match=r"missing from the checkpoint: model.layers.1.mlp.up_proj.weight"
    ):
        load(checkpoint)


def test_a_model_type_of_another_class_than_the_one_named_is_refused(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path, "stablelm")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": ["PhiForCausalLM"]}))
    with pytest.raises(InvalidFormat, match="names PhiForCausalLM, but its model_type stablelm is StableLm"):
        load(checkpoint)


def test_code_that_comes_with_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path, "stablelm")
    path = tmp_path / "config.json"
    own = {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}
    (tmp_path / "mine.py").write_text("raise SystemExit('code of the checkpoint ran')")
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"auto_map": own}))
    assert isinstance(load(checkpoint), FallbackDecoder)  # transformers' own class
    path.write_text(json.dumps(config | {"auto_map": own, "model_type": "mine"}))
    with pytest.raises(LoadFailed, match="cannot load StableLmForCausalLM"):
        load(checkpoint)
