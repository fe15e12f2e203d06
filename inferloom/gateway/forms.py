"""How an answer is written: OpenAI's chat and completion shapes, whole or as a stream of SSE frames.

A frame of plain text, which nearly all are, is a prefix made once, the text as JSON, and a suffix.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from inferloom.gateway.call import encode
from inferloom.gateway.gathered import Gathered, GatheredChoice, checked, cut_off
from inferloom.gateway.ids import unique
from inferloom.gateway.wire.answers import (
    AnswerMessage,
    ChatChoice,
    ChatResponse,
    CompletionChoice,
    CompletionResponse,
    FunctionBody,
    ToolCallBody,
    chat_logprobs,
    legacy_logprobs,
    usage_body,
)
from inferloom.gateway.wire.errors import encode_error
from inferloom.types import TokenChunk, Usage

DONE = b"data: [DONE]\n\n"


def new_id(prefix: str) -> str:
    """A unique id: 96 random bits after the prefix."""
    return prefix + unique()


class Form(ABC):
    """One answer's id, model name and time, and how its chunks are written."""

    kind: str
    chunk_object: str
    response: type[ChatResponse] | type[CompletionResponse]
    before_text: bytes  # in a choice of a frame
    after_text: bytes

    def __init__(self, *, model: str, choices: int, include_usage: bool = False) -> None:
        self.id = new_id(self.kind)
        self.model = model
        self.created = int(time.time())
        self.choices = choices
        self.include_usage = include_usage
        self.usage: Usage | None = None
        self._unfinished = choices
        self._tail = b',"usage":null}\n\n' if include_usage else b"}\n\n"
        # every frame begins with it
        self._head = b'data: {"id":"%s","object":"%s","created":%d,"model":%s,"choices":[' % (
            self.id.encode(),
            self.chunk_object.encode(),
            self.created,
            encode(model),
        )
        self._prefixes = [
            b'%s{"index":%d,%s' % (self._head, index, self.before_text) for index in range(choices)
        ]
        self._suffix = self.after_text + b',"logprobs":null,"finish_reason":null}]' + self._tail

    def answer(self, gathered: Gathered) -> bytes:
        """The whole answer as JSON."""
        choices: list[Any] = [self._choice(index, choice) for index, choice in enumerate(gathered.choices)]
        return encode(
            self.response(
                id=self.id,
                created=self.created,
                model=self.model,
                choices=choices,
                usage=usage_body(gathered.usage or Usage()),
            )
        )

    @abstractmethod
    def _choice(self, index: int, choice: GatheredChoice) -> ChatChoice | CompletionChoice: ...

    @abstractmethod
    def opening(self) -> bytes:
        """Frames before the first token."""

    def frames(self, chunks: Sequence[TokenChunk]) -> bytes:
        """One frame for each chunk that says something, and one for the end of each choice."""
        parts: list[bytes] = []
        prefixes, suffix = self._prefixes, self._suffix
        for chunk in chunks:
            if self._is_rich(chunk):
                parts.append(self._rich_frame(chunk))
            elif chunk.text:
                parts += (prefixes[chunk.index], encode(chunk.text), suffix)
            if chunk.finish_reason is not None:
                self._unfinished -= 1
                self.usage = chunk.usage or self.usage
                parts.append(self._finish_frame(chunk.index, checked(chunk.finish_reason).encode()))
        return b"".join(parts)

    @abstractmethod
    def _is_rich(self, chunk: TokenChunk) -> bool:
        """Whether it says more than text."""

    @abstractmethod
    def _rich_frame(self, chunk: TokenChunk) -> bytes: ...

    @abstractmethod
    def _finish_frame(self, index: int, reason: bytes) -> bytes: ...

    def closing(self) -> bytes:
        """The usage where it was asked for, and `[DONE]`. Raises where a choice never ended."""
        if self._unfinished:
            raise cut_off()
        if not self.include_usage:
            return DONE
        usage = encode(usage_body(self.usage or Usage()))
        return b'%s],"usage":%s}\n\n%s' % (self._head, usage, DONE)

    def failure(self, error: BaseException) -> bytes:
        """An error in the middle of a stream, and its end."""
        return b"data: %s\n\n%s" % (encode_error(error), DONE)


class ChatForm(Form):
    kind = "chatcmpl-"
    chunk_object = "chat.completion.chunk"
    response = ChatResponse
    before_text, after_text = b'"delta":{"content":', b"}"

    def __init__(
        self, *, model: str, choices: int, include_usage: bool = False, logprobs: bool = False
    ) -> None:
        super().__init__(model=model, choices=choices, include_usage=include_usage)
        self._logprobs = logprobs

    def _choice(self, index: int, choice: GatheredChoice) -> ChatChoice:
        message = AnswerMessage(content=choice.text)
        if choice.reasoning:
            message.reasoning_content = choice.reasoning
        if choice.tool_calls:
            message.tool_calls = [
                ToolCallBody(id=call.id or "", function=FunctionBody(call.name or "", call.arguments))
                for _, call in sorted(choice.tool_calls.items())
            ]
            message.content = choice.text or None
        return ChatChoice(
            index=index,
            message=message,
            logprobs=chat_logprobs(choice.logprobs) if self._logprobs else None,
            finish_reason=choice.finish_reason,  # type: ignore[arg-type]
        )

    def opening(self) -> bytes:
        """Every choice's role."""
        return b"".join(
            [
                b'%s{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]%s'
                % (self._head, index, self._tail)
                for index in range(self.choices)
            ]
        )

    def _is_rich(self, chunk: TokenChunk) -> bool:
        return bool(chunk.reasoning or chunk.tool_calls or chunk.logprobs)

    def _rich_frame(self, chunk: TokenChunk) -> bytes:
        delta: dict[str, Any] = {}
        if chunk.reasoning:
            delta["reasoning_content"] = chunk.reasoning
        if chunk.text or (chunk.logprobs and not chunk.reasoning and not chunk.tool_calls):
            delta["content"] = chunk.text
        if chunk.tool_calls:
            delta["tool_calls"] = [_tool_call_delta(call) for call in chunk.tool_calls]
        logprobs = chat_logprobs(chunk.logprobs) if self._logprobs and chunk.logprobs else None
        return b'%s{"index":%d,"delta":%s,"logprobs":%s,"finish_reason":null}]%s' % (
            self._head,
            chunk.index,
            encode(delta),
            encode(logprobs),
            self._tail,
        )

    def _finish_frame(self, index: int, reason: bytes) -> bytes:
        return b'%s{"index":%d,"delta":{},"logprobs":null,"finish_reason":"%s"}]%s' % (
            self._head,
            index,
            reason,
            self._tail,
        )


def _tool_call_delta(call: Any) -> dict[str, Any]:
    function: dict[str, str] = {}
    if call.name is not None:
        function["name"] = call.name
    if call.arguments or call.name is not None:
        function["arguments"] = call.arguments
    delta: dict[str, Any] = {"index": call.index}
    if call.id is not None:
        delta |= {"id": call.id, "type": "function"}
    return delta | {"function": function}


class CompletionForm(Form):
    kind = "cmpl-"
    chunk_object = "text_completion"
    response = CompletionResponse
    before_text, after_text = b'"text":', b""

    def __init__(
        self, *, model: str, choices: int, include_usage: bool = False, logprobs: int | None = None
    ) -> None:
        super().__init__(model=model, choices=choices, include_usage=include_usage)
        self._logprobs = logprobs
        self._offsets = [0] * choices  # characters already reported in `text_offset`

    def _choice(self, index: int, choice: GatheredChoice) -> CompletionChoice:
        logprobs = None
        if self._logprobs is not None:
            logprobs = legacy_logprobs(choice.logprobs, offset=0, top=self._logprobs > 0)
        return CompletionChoice(
            text=choice.text,
            index=index,
            logprobs=logprobs,
            finish_reason=choice.finish_reason,  # type: ignore[arg-type]
        )

    def opening(self) -> bytes:
        return b""

    def _is_rich(self, chunk: TokenChunk) -> bool:
        return bool(chunk.logprobs) and self._logprobs is not None

    def _rich_frame(self, chunk: TokenChunk) -> bytes:
        index = chunk.index
        logprobs = legacy_logprobs(chunk.logprobs, offset=self._offsets[index], top=bool(self._logprobs))
        self._offsets[index] += sum(len(token) for token in logprobs.tokens)
        return b'%s%s,"logprobs":%s,"finish_reason":null}]%s' % (
            self._prefixes[index],
            encode(chunk.text),
            encode(logprobs),
            self._tail,
        )

    def _finish_frame(self, index: int, reason: bytes) -> bytes:
        return b'%s"","logprobs":null,"finish_reason":"%s"}]%s' % (self._prefixes[index], reason, self._tail)
