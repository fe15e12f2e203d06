from __future__ import annotations

from array import array

import pytest

from inferloom.types import ModelCard
from inferloom.worker.embedding import EmbeddingHost
from inferloom.worker.messages.replies import Embedded, Rejected
from inferloom.worker.messages.requests import Cancel, Embed, Generate, SamplingSpec

CARD = ModelCard(
    kind="embed",
    architecture="X",
    parameters=0,
    format="dummy",
    dtype="float32",
    max_model_len=64,
    vocab_size=9,
)


class Recording:
    """An encoder whose rows are (first token, length)."""

    def __init__(self, max_batch_tokens: int = 16) -> None:
        self.batches: list[list[int]] = []
        self.host = EmbeddingHost(self.encode, card=CARD, stages={}, max_batch_tokens=max_batch_tokens)

    def encode(self, prompts: list[list[int]]) -> bytes:
        self.batches.append([len(prompt) for prompt in prompts])
        return b"".join(array("f", [prompt[0], len(prompt)]).tobytes() for prompt in prompts)

    def run(self) -> dict[int, list[float]]:
        found = {}
        while self.host.has_work:
            for reply in self.host.step():
                assert isinstance(reply, Embedded)
                found[reply.id] = array("f", reply.data).tolist()
        return found


def test_rows_come_back_in_the_order_of_their_inputs_whatever_the_batches() -> None:
    it = Recording()
    it.host.embed(Embed(1, [[3] * 9, [1], [2] * 4]))
    it.host.embed(Embed(2, [[7] * 2]))
    assert it.run() == {1: [3, 9, 1, 1, 2, 4], 2: [7, 2]}


def test_short_prompts_share_a_batch_within_the_limit_of_padded_tokens() -> None:
    it = Recording(max_batch_tokens=12)
    it.host.embed(Embed(1, [[1] * 10, [1] * 3, [1] * 4, [1] * 4]))
    it.run()
    assert it.batches == [[3, 4, 4], [10]]


def test_a_prompt_longer_than_the_limit_is_a_batch_of_its_own() -> None:
    it = Recording(max_batch_tokens=4)
    it.host.embed(Embed(1, [[1] * 20, [1] * 30]))
    it.run()
    assert it.batches == [[20], [30]]


def test_a_cancelled_request_is_not_encoded() -> None:
    it = Recording()
    it.host.embed(Embed(1, [[1]]))
    it.host.embed(Embed(2, [[2]]))
    it.host.cancel(Cancel(1))
    assert it.run() == {2: [2, 1]}
    assert it.batches == [[1]]


@pytest.mark.parametrize("prompt", [[], [1] * 65, [9], [-1]])
def test_what_would_fail_in_the_encoder_is_refused_and_harms_nobody(prompt: list[int]) -> None:
    it = Recording()
    it.host.embed(Embed(1, [[1], prompt]))
    (reply,) = it.host.step()
    assert isinstance(reply, Rejected) and (reply.id, reply.kind) == (1, "invalid_request")
    it.host.embed(Embed(2, [[2]]))
    assert it.run() == {2: [2, 1]}


def test_generating_is_refused() -> None:
    it = Recording()
    it.host.generate(Generate(id=4, prompt=[1], max_tokens=1, sampling=SamplingSpec()))
    (reply,) = it.host.step()
    assert isinstance(reply, Rejected) and (reply.id, reply.kind) == (4, "unsupported")
