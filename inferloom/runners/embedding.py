"""Embedding requests: inputs to prompts, rows to what was asked for."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from inferloom.errors import ContextLengthExceeded, InvalidRequest
from inferloom.text.codec import TextCodec
from inferloom.types import EmbedBatch, EmbedResult, ModelCard
from inferloom.worker.messages.replies import Embedded


def check_token_ids(ids: Sequence[int], vocab_size: int, *, param: str) -> None:
    """Raises `InvalidRequest` for an id outside the vocabulary."""
    if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
        wrong = min(ids) if min(ids) < 0 else max(ids)
        raise InvalidRequest(
            f"token id {wrong} is not in this model's vocabulary, which has the ids 0 to {vocab_size - 1}",
            param=param,
        )


def prompts(batch: EmbedBatch, codec: TextCodec, card: ModelCard) -> list[list[int]]:
    """Token ids of every input, in order. Raises `InvalidRequest`, `ContextLengthExceeded`."""
    if batch.dimensions is not None and not 1 <= batch.dimensions <= card.dimensions:
        raise InvalidRequest(
            f"dimensions is {batch.dimensions}, but this model's embeddings have {card.dimensions}; "
            "ask for at most that many",
            param="dimensions",
        )
    texts = [one for one in batch.inputs if isinstance(one, str)]
    encoded = iter(codec.encode_batch(texts, add_special_tokens=True))
    made: list[list[int]] = []
    for number, given in enumerate(batch.inputs):
        ids = next(encoded) if isinstance(given, str) else given
        if not isinstance(given, str):
            check_token_ids(ids, card.vocab_size, param="input")
        if not ids or given == "":
            raise InvalidRequest(f"input {number} is empty; give a text or token ids", param="input")
        if len(ids) > card.max_model_len:
            raise ContextLengthExceeded(
                f"input {number} has {len(ids)} tokens, but this model takes at most {card.max_model_len}; "
                "shorten it",
                param="input",
            )
        made.append(ids)
    return made


def result(answer: Embedded, batch: EmbedBatch, made: Sequence[Sequence[int]]) -> EmbedResult:
    """What was asked for: with `dimensions` the first ones of each row, brought back to length 1."""
    data, dimensions = answer.data, answer.dimensions
    if batch.dimensions is not None and batch.dimensions < dimensions:
        data = b"".join(
            _shortened(data[start : start + 4 * dimensions], batch.dimensions)
            for start in range(0, len(data), 4 * dimensions)
        )
        dimensions = batch.dimensions
    return EmbedResult(data=data, dimensions=dimensions, prompt_tokens=sum(len(ids) for ids in made))


def _shortened(row: bytes, dimensions: int) -> bytes:
    values = array("f", row[: 4 * dimensions])
    norm = sum(value * value for value in values) ** 0.5
    return array("f", [value / norm for value in values]).tobytes() if norm else values.tobytes()
