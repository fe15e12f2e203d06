"""One answer, from request to text: the prompt's token ids, what the answer must match, and a reader of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from inferloom.errors import InvalidRequest
from inferloom.text.codec import TextCodec
from inferloom.text.detokenizer import Detokenizer
from inferloom.text.reasoning import ReasoningFormat, ReasoningParser
from inferloom.text.schemas import check_parameters, check_schema
from inferloom.text.stops import StopMatcher
from inferloom.text.tool_parser import ToolCallParser
from inferloom.types import Constraint, ExecuteBatch, ToolCallDelta


class Piece(NamedTuple):
    """What became certain with some tokens. `stopped`: a stop string was met and nothing follows."""

    text: str = ""
    reasoning: str = ""
    tool_calls: Sequence[ToolCallDelta] = ()
    stopped: bool = False


class AnswerReader:
    """Turns the tokens of one choice into text, reasoning and tool calls.

    In this order: detokenize, take thoughts out, watch for stop strings (in the answer, not in thoughts), take
    tool calls out. `called` says whether there was a call.
    """

    __slots__ = ("_detokenizer", "_plain", "_reasoning", "_stops", "_tools")

    def __init__(
        self,
        detokenizer: Detokenizer,
        *,
        stops: Sequence[str] = (),
        reasoning: ReasoningParser | None = None,
        tools: ToolCallParser | None = None,
    ) -> None:
        self._detokenizer = detokenizer
        self._reasoning = reasoning
        self._stops = StopMatcher(stops)
        self._tools = tools
        self._plain = reasoning is None and tools is None and not stops

    @property
    def called(self) -> bool:
        return self._tools is not None and self._tools.calls > 0

    @property
    def stop(self) -> str | None:
        """The stop string that was met."""
        return self._stops.matched

    def push(self, token_ids: Sequence[int]) -> Piece:
        text = self._detokenizer.push(token_ids)
        if self._plain or not text:
            return Piece(text)
        thought = ""
        if self._reasoning is not None:
            thought, text = self._reasoning.push(text)
        text, stopped = self._stops.push(text)
        if self._tools is None:
            return Piece(text, thought, (), stopped)
        text, calls = self._tools.push(text)
        if stopped:
            rest, more = self._tools.flush(cut=True)
            text, calls = text + rest, calls + more
        return Piece(text, thought, calls, stopped)

    def flush(self, *, cut: bool = False) -> Piece:
        """No token follows: what was held back. `cut`: by a limit, not by the model."""
        text = self._detokenizer.flush()
        if self._plain:
            return Piece(text)
        thought = ""
        if self._reasoning is not None:
            thought, text = self._reasoning.push(text)
            rest_thought, rest = self._reasoning.flush()
            thought, text = thought + rest_thought, text + rest
        text, stopped = self._stops.push(text)
        text += self._stops.flush()
        if self._tools is None:
            return Piece(text, thought, (), stopped)
        text, calls = self._tools.push(text)
        rest, more = self._tools.flush(cut=cut or stopped)
        return Piece(text + rest, thought, calls + more, stopped)


class AnswerPlan:
    """What a request comes to: the prompt's token ids (never empty), the grammar of the answer (`json_schema`,
    `regex` or `lark`; None: anything), and a reader for each choice's tokens."""

    def __init__(self, codec: TextCodec, batch: ExecuteBatch) -> None:
        """Raises `InvalidRequest` for what the tokenizer or the template cannot do with the request."""
        self._codec = codec
        self._stops = batch.stop
        self._reasoning: ReasoningFormat | None = None
        self._thinking = False
        # with tool_choice `none` the tools are not even shown
        self._tools = () if batch.tool_choice.mode == "none" or batch.messages is None else batch.tools
        self.prompt: str | None = None  # the text, where the request was not token ids
        self.constraint: Constraint | None = None
        if batch.messages is not None:
            self._reasoning = codec.reasoning
            self.prompt = codec.render_chat(
                batch.messages, tools=self._tools, kwargs=batch.chat_template_kwargs
            )
            self._thinking = self._reasoning is not None and self._reasoning.is_open(self.prompt)
            token_ids = codec.encode_prompt(self.prompt)
        elif batch.text is not None:
            self.prompt = batch.text
            token_ids = codec.encode(batch.text, add_special_tokens=True)
        else:
            token_ids = list(batch.token_ids or ())
        self.token_ids = token_ids or self._begin()
        self.constraint = self._constrain(batch)

    def _begin(self) -> list[int]:
        bos = self._codec.bos_token_id
        if bos is None:
            raise InvalidRequest(
                "the prompt is empty, and this model has no token to begin a text with; give a prompt",
                param="prompt",
            )
        return [bos]

    def _constrain(self, batch: ExecuteBatch) -> Constraint | None:
        response = batch.constraint
        for index, tool in enumerate(self._tools):
            check_parameters(tool.parameters, param=f"tools[{index}].function.parameters")
        if response is not None and response.kind == "json_schema":
            _check_response(response.value)
        if self._tools or batch.tool_choice.mode in ("required", "function"):
            return self._codec.tool_format.constraint(
                self._tools,
                batch.tool_choice,
                thinking=self._thinking,
                parallel=batch.parallel_tool_calls,
                response=response,
            )
        if response is None:
            return None
        return self._codec.response_constraint(response, reasoning=self._reasoning, thinking=self._thinking)

    def reader(self) -> AnswerReader:
        """A new one for every choice."""
        codec, tools = self._codec, self._tools
        keep: frozenset[int] = codec.tool_format.marker_ids if tools else frozenset()
        reasoning = None
        if self._reasoning is not None:
            keep |= self._reasoning.marker_ids
            reasoning = ReasoningParser(
                self._reasoning.opening, self._reasoning.closing, inside=self._thinking
            )
        return AnswerReader(
            codec.detokenizer(keep=keep),
            stops=self._stops,
            reasoning=reasoning,
            tools=codec.tool_format.parser(tools) if tools else None,
        )


def _check_response(value: str) -> None:
    param = "response_format.json_schema.schema"
    try:
        schema = msgspec.json.decode(value)
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"{param} is no JSON: {error}", param=param) from error
    check_schema(schema, param=param)
