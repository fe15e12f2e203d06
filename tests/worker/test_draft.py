"""A model with a draft model in one worker."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch
from factories.checkpoints import make_checkpoint

from inferloom.errors import LoadFailed
from inferloom.formats.checkpoint import Checkpoint
from inferloom.worker.messages.job import WorkerJob
from inferloom.worker.messages.replies import Step
from inferloom.worker.messages.requests import Generate, SamplingSpec
from inferloom.worker.native import EngineHost, load_native


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Checkpoint]:
    """A model and a smaller one."""
    torch.set_num_threads(1)
    folder: Path = tmp_path_factory.mktemp("drafting")
    return make_checkpoint(folder / "large", "llama", layers=3), make_checkpoint(folder / "small", "qwen2")


def host(model: Checkpoint, draft: Checkpoint | None, **options: object) -> EngineHost:
    job = WorkerJob(
        model="large",
        driver="native",
        checkpoint=model,
        draft=draft,
        threads=1,
        activation_dtype="float32",
        max_batch_size=4,
        kv_budget_bytes=64 << 20,
    )
    loaded = load_native(msgspec.structs.replace(job, **options), report=lambda stage, fraction: None)
    assert isinstance(loaded, EngineHost)
    return loaded


def answer(host: EngineHost) -> list[int]:
    host.generate(Generate(1, [7, 8, 9, 10], 60, SamplingSpec(temperature=0.8, seed=3)))
    tokens: list[int] = []
    while host.has_work:
        for reply in host.step():
            assert isinstance(reply, Step)
            tokens += reply.sequences[0].tokens
    return tokens


def test_a_draft_model_changes_no_answer(checkpoints: tuple[Checkpoint, Checkpoint]) -> None:
    model, draft = checkpoints
    expected = answer(host(model, None, speculative_tokens=0))
    for drafting in (draft, model):  # the model itself drafts what it will draw
        drafted = host(model, drafting)
        assert answer(drafted) == expected
        assert drafted.stats().drafted_tokens > 0
    assert drafted.stats().accepted_tokens > 0.9 * drafted.stats().drafted_tokens


def test_a_draft_models_pages_are_paid_from_the_same_budget(
    checkpoints: tuple[Checkpoint, Checkpoint],
) -> None:
    model, draft = checkpoints
    budget = 1 << 19
    alone, both = host(model, None, kv_budget_bytes=budget), host(model, draft, kv_budget_bytes=budget)
    assert both.card.kv_pages < alone.card.kv_pages


def test_a_model_of_another_tokenizer_cannot_draft(
    checkpoints: tuple[Checkpoint, Checkpoint], tmp_path: Path
) -> None:
    model, draft = checkpoints
    tokenizer = msgspec.json.decode((Path(draft.folder) / "tokenizer.json").read_bytes())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (tmp_path / "tokenizer.json").write_bytes(msgspec.json.encode(tokenizer))
    other = msgspec.structs.replace(draft, tokenizer_folder=str(tmp_path))
    with pytest.raises(LoadFailed, match="their tokenizers differ"):
        host(model, other)


def test_a_model_that_makes_embeddings_cannot_draft(
    checkpoints: tuple[Checkpoint, Checkpoint], tmp_path: Path
) -> None:
    with pytest.raises(LoadFailed, match="makes embeddings and cannot draft"):
        host(checkpoints[0], make_checkpoint(tmp_path / "bert", "bert"))
