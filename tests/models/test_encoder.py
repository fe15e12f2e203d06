"""Encoders against `transformers`, with every pooling."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from factories.checkpoints import ENCODERS, make_checkpoint
from safetensors.torch import load_file, save_file

from inferloom.errors import InvalidFormat, LoadFailed, Unsupported
from inferloom.formats.checkpoint import Checkpoint
from inferloom.models.batch import Embedder
from inferloom.models.loader import load
from inferloom.models.pooling import Pooling

Make = Callable[..., Checkpoint]
LENGTHS = (3, 7, 7, 100, 1, 50, 3)


def embedder_of(checkpoint: Checkpoint, **options: Any) -> Embedder:
    embedder = load(checkpoint, **options)
    assert isinstance(embedder, Embedder)
    return embedder


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(5, 120, (length,), generator=generator).tolist() for length in LENGTHS]


@torch.inference_mode()
def reference_states(checkpoint: Checkpoint, prompt: list[int]) -> torch.Tensor:
    model = transformers.AutoModel.from_pretrained(checkpoint.folder).eval()
    return model(torch.tensor([prompt])).last_hidden_state[0].float()


def write_modules(folder: Path, *kinds: str, pooling: dict[str, Any] | None = None) -> None:
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize", "Dense": "2_Dense"}
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": paths[kind]} for kind in kinds]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling or {}))


@pytest.mark.parametrize("family", ENCODERS)
def test_embeddings_equal_those_of_transformers_alone_and_batched(family: str, checkpoint_of: Make) -> None:
    checkpoint = checkpoint_of(family)
    embedder = embedder_of(checkpoint)
    batched = embedder.embed(prompts())
    for prompt, ours in zip(prompts(), batched, strict=True):
        theirs = torch.nn.functional.normalize(reference_states(checkpoint, prompt).mean(0), dim=0)
        assert (ours - theirs).abs().max() <= 1e-4
        assert torch.equal(embedder.embed([prompt])[0], ours)
    assert batched.dtype == torch.float32


@pytest.mark.parametrize(
    ("flag", "formula"),
    [
        ("cls_token", lambda states: states[0]),
        ("lasttoken", lambda states: states[-1]),
        ("max_tokens", lambda states: states.max(0).values),
        ("mean_tokens", lambda states: states.mean(0)),
        ("mean_sqrt_len_tokens", lambda states: states.sum(0) / len(states) ** 0.5),
    ],
)
def test_pooling_is_what_the_checkpoint_names(
    flag: str, formula: Callable[[torch.Tensor], torch.Tensor], tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(tmp_path, "bert")
    write_modules(tmp_path, "Transformer", "Pooling", pooling={f"pooling_mode_{flag}": True})
    ours = embedder_of(checkpoint).embed(prompts())
    for prompt, vector in zip(prompts(), ours, strict=True):
        assert torch.allclose(vector, formula(reference_states(checkpoint, prompt)), atol=1e-4)


def test_several_poolings_are_joined_and_normalised_where_the_checkpoint_says_so(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path, "bert")
    both = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
    write_modules(tmp_path, "Transformer", "Pooling", "Normalize", pooling=both)
    embedder = embedder_of(checkpoint)
    vectors = embedder.embed(prompts())
    assert embedder.card.dimensions == vectors.shape[1] == 128
    assert torch.allclose(vectors.norm(dim=1), torch.ones(len(LENGTHS)), atol=1e-5)


@pytest.mark.parametrize(
    ("kinds", "pooling", "error", "words"),
    [
        (("Transformer", "Pooling", "Dense"), {"pooling_mode": "mean"}, Unsupported, "module Dense"),
        (
            ("Transformer", "Pooling"),
            {"pooling_mode_weightedmean_tokens": True},
            Unsupported,
            "mode 'weightedmean'",
        ),
        (("Transformer", "Pooling"), {}, InvalidFormat, "names no pooling mode"),
    ],
)
def test_a_pooling_that_is_not_known_is_refused(
    kinds: tuple[str, ...], pooling: dict[str, Any], error: type[Exception], words: str, tmp_path: Path
) -> None:
    write_modules(tmp_path, *kinds, pooling=pooling)
    with pytest.raises(error, match=words):
        Pooling.of(tmp_path)


def test_a_pooling_path_that_leads_out_of_the_checkpoint_is_refused(tmp_path: Path) -> None:
    modules = [{"type": "sentence_transformers.models.Pooling", "path": "../elsewhere"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(InvalidFormat, match=r"'../elsewhere' leads out of the checkpoint"):
        Pooling.of(tmp_path)


def test_the_length_is_the_sentence_configuration_s_unless_asked_for_up_to_the_positions(
    checkpoint_of: Make,
) -> None:
    bert, roberta = checkpoint_of("bert"), checkpoint_of("roberta")
    assert load(bert).card.max_model_len == 256
    assert load(bert, max_model_len=512).card.max_model_len == 512
    assert (
        load(roberta, max_model_len=512).card.max_model_len == 512
    )  # 514 positions, of which two are never used
    with pytest.raises(LoadFailed, match="max_model_len is 513, but the checkpoint's positions end at 512"):
        load(roberta, max_model_len=513)


def test_the_last_position_can_be_used(checkpoint_of: Make) -> None:
    checkpoint = checkpoint_of("roberta")
    prompt = [5 + i % 100 for i in range(512)]
    theirs = torch.nn.functional.normalize(reference_states(checkpoint, prompt).mean(0), dim=0)
    assert (embedder_of(checkpoint).embed([prompt])[0] - theirs).abs().max() <= 1e-4


def test_an_encoder_computes_in_the_dtype_of_its_weights(checkpoint_of: Make) -> None:
    assert load(checkpoint_of("bert"), activation_dtype="bfloat16").card.dtype == "float32"
    assert load(checkpoint_of("bert"), dtype="bfloat16").card.dtype == "bfloat16"


def test_tensors_under_the_name_of_the_family_are_found(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path, "bert")
    expected = embedder_of(checkpoint).embed(prompts()).clone()
    tensors = {f"bert.{name}": tensor.clone() for name, tensor in load_file(checkpoint.weights[0]).items()}
    save_file(
        tensors | {"cls.predictions.bias": torch.ones(130)}, checkpoint.weights[0], metadata={"format": "pt"}
    )
    assert torch.equal(embedder_of(checkpoint).embed(prompts()), expected)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_act": "relu"}, "hidden_act 'relu'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
        ({"is_decoder": True}, "is_decoder"),
    ],
)
def test_an_option_an_encoder_does_not_know_is_refused(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(tmp_path, "bert")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(Unsupported, match=words):
        load(checkpoint)
