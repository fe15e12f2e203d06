"""A whole answer put together from its chunks."""

from __future__ import annotations

from collections.abc import Sequence

from inferloom.errors import Cancelled, InferloomError
from inferloom.types import FinishReason, TokenChunk, TokenLogprob, ToolCallDelta, Usage


class GatheredChoice:
    """One choice of an answer."""

    __slots__ = ("finish_reason", "logprobs", "reasoning", "text", "tool_calls")

    def __init__(self) -> None:
        self.text = ""
        self.reasoning = ""
        self.logprobs: list[TokenLogprob] = []
        self.tool_calls: dict[int, ToolCallDelta] = {}
        self.finish_reason: FinishReason | None = None

    def add(self, chunk: TokenChunk) -> None:
        self.text += chunk.text
        if chunk.reasoning:
            self.reasoning += chunk.reasoning
        if chunk.logprobs:
            self.logprobs.extend(chunk.logprobs)
        for delta in chunk.tool_calls:
            known = self.tool_calls.get(delta.index, ToolCallDelta(index=delta.index))
            self.tool_calls[delta.index] = ToolCallDelta(
                index=delta.index,
                id=known.id or delta.id,
                name=known.name or delta.name,
                arguments=known.arguments + delta.arguments,
            )
        if chunk.finish_reason is not None:
            self.finish_reason = checked(chunk.finish_reason)


class Gathered:
    """All choices of an answer, and what they cost."""

    __slots__ = ("choices", "usage")

    def __init__(self, choices: int) -> None:
        self.choices = [GatheredChoice() for _ in range(choices)]
        self.usage: Usage | None = None

    def add(self, chunks: Sequence[TokenChunk]) -> None:
        for chunk in chunks:
            self.choices[chunk.index].add(chunk)
            if chunk.usage is not None:
                self.usage = chunk.usage

    def check(self) -> None:
        """Raise where a choice never ended: an answer cut off is an error, not an answer."""
        if any(choice.finish_reason is None for choice in self.choices):
            raise cut_off()


def checked(reason: FinishReason) -> FinishReason:
    """Raise for the reasons that are failures; OpenAI's API has no word for them."""
    if reason == "error":
        raise InferloomError("The model failed while it was answering; the server's log has the details.")
    if reason == "cancelled":
        raise Cancelled("The answer was ended from outside before it was complete.")
    return reason


def cut_off() -> InferloomError:
    return InferloomError("The model's answer ended before it was complete; try again.")
