"""Tool calls out of a model's text while it streams: what is a call becomes deltas, everything else stays text."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from inferloom.text.call_reader import CallReader, JsonScanner
from inferloom.text.call_syntax import ARGUMENTS_MARK, CALL_ID_MARK, CallSyntax
from inferloom.text.reasoning import partial_suffix
from inferloom.types import Tool, ToolCallDelta

_SPACE = " \t\r\n"
_LONGEST_NAME = 256


class ToolCallParser:
    """One choice's text. `calls` counts what was told so far.

    A call is told of once its name (one of the tools') and the beginning of its arguments are there; its arguments
    follow as they come. Text that turns out to be no call is text. White space alone before, between and after
    calls is dropped.
    """

    def __init__(self, syntax: CallSyntax, tools: Sequence[Tool]) -> None:
        self._syntax = syntax
        self._names = frozenset(tool.name for tool in tools)
        self._buffer = ""
        self._state = self._text
        self._beginning = syntax.bare  # nothing but white space so far: a bare call may begin
        self._blank = ""  # white space that is text only if text follows
        self._spoken = False  # text was emitted since the last call
        self._block = ""  # what was used of the call in progress, in case it is none
        self._opening = 0  # how much of that is the opening
        self._certain = False  # a mark says that a call is meant, not an answer in JSON
        self._reader = CallReader(self._names)
        self._scanner: JsonScanner | None = None  # of the arguments, in the named style
        self._told = False  # the call in progress was told
        self._visible: list[str] = []
        self._deltas: list[ToolCallDelta] = []
        self.calls = 0

    def push(self, text: str) -> tuple[str, list[ToolCallDelta]]:
        """The text that became certain to be no call, and what was learnt of calls."""
        if (
            self._state == self._text
            and not self._buffer
            and not self._beginning
            and self._spoken
            and self._syntax.opening[0] not in text
        ):
            return text, []
        self._buffer += text
        while self._state():
            pass
        return self._results()

    def flush(self, *, cut: bool = False) -> tuple[str, list[ToolCallDelta]]:
        """The answer is over. A call that never got as far as its arguments becomes text where the model left it at
        that. Where the answer was `cut` (by its limit, by a stop string) it is dropped: what a client shows, or sends
        back with the conversation, is free of a family's marks. `{` without a mark may be an answer in JSON: text."""
        if not self._told and not (cut and self._block and self._certain):
            self._say(self._block + self._buffer)
        self._block = self._buffer = ""
        if not self.calls:
            self._visible.append(self._blank)
            self._blank = ""
        return self._results()

    def _results(self) -> tuple[str, list[ToolCallDelta]]:
        visible, deltas = "".join(self._visible), self._deltas
        self._visible, self._deltas = [], []
        return visible, deltas

    # --- states: each uses some of the buffer and says whether there is more to do ------------------------------------

    def _text(self) -> bool:
        if self._beginning:
            stripped = self._buffer.lstrip(_SPACE)
            if not stripped:
                return False
            self._beginning = False
            if stripped[0] == "{":
                self._begin_call(opening=len(self._buffer) - len(stripped), certain=False)
                return True
        before, found, rest = self._buffer.partition(self._syntax.opening)
        if found:
            self._say(before)
            self._buffer = found + rest
            self._begin_call(opening=len(found))
            return True
        keep = partial_suffix(self._buffer, self._syntax.opening)
        certain = len(self._buffer) - keep
        self._say(self._buffer[:certain])
        self._buffer = self._buffer[certain:]
        return False

    def _begin_call(self, *, opening: int, certain: bool = True) -> None:
        self._block = ""
        self._certain = certain
        self._use(opening)
        self._opening = opening
        self._reader = CallReader(self._names)
        self._scanner = None
        self._told = False
        self._state = {"object": self._object, "array": self._array, "named": self._name}[self._syntax.style]

    def _use(self, count: int) -> None:
        self._block += self._buffer[:count]
        self._buffer = self._buffer[count:]

    def _object(self) -> bool:
        self._use(self._reader.feed(self._buffer, 0))
        if self._reader.announced and self._reader.name is not None:
            self._tell(self._reader.name, self._reader.take())
        if self._reader.bad:
            return self._no_call()
        if self._reader.done:
            self._state = self._between if self._syntax.style == "array" else self._after
            return True
        return False

    def _array(self) -> bool:
        if not self._skip_space():
            return False
        if self._buffer[0] == "[":
            self._use(1)
            self._state = self._object
            return True
        if self._buffer[0] == "{":  # a single call without the list
            self._state = self._object
            return True
        if self._syntax.opening == "[TOOL_CALLS]":  # the family's other way of writing
            self._state = self._name
            return True
        return self._no_call()

    def _between(self) -> bool:
        """In a list, after a call."""
        if not self._skip_space():
            return False
        character = self._buffer[0]
        if character == ",":
            self._use(1)
            self._begin_call(opening=0)
            self._state = self._object
        else:
            self._use(1 if character == "]" else 0)
            self._state = self._after
        return True

    def _name(self) -> bool:
        """`name[CALL_ID]…[ARGS]` up to the arguments."""
        head, found, rest = self._buffer.partition(ARGUMENTS_MARK)
        if "{" in head:  # some write name{…}
            head, found, rest = self._buffer.partition("{")
            rest, found = found + rest, ""
        elif not found:
            return self._no_call() if len(self._buffer) > _LONGEST_NAME else False
        name = head.partition(CALL_ID_MARK)[0].strip()
        if name not in self._names:
            return self._no_call()
        self._reader.name = name
        self._use(len(head) + len(found))
        self._buffer = rest
        self._scanner = JsonScanner()
        self._state = self._arguments
        return True

    def _arguments(self) -> bool:
        """In the named style: the object itself."""
        assert self._scanner is not None and self._reader.name is not None
        if not self._scanner.first:
            if not self._skip_space():
                return False
            if self._buffer[0] != "{":
                return self._no_call()
        if not self._buffer:
            return False
        end = self._scanner.scan(self._buffer, 0)
        piece = self._buffer if end < 0 else self._buffer[:end]
        self._use(len(piece))
        self._tell(self._reader.name, piece)
        if end >= 0:
            self._state = self._after
        return end >= 0

    def _after(self) -> bool:
        """After a call, or a list of them: its closing, and perhaps a separator with another call."""
        if not self._skip_space():
            return False
        closing = self._syntax.closing
        if closing and closing.startswith(self._buffer) and closing != self._buffer:
            return False
        if closing and self._buffer.startswith(closing):
            self._use(len(closing))
        elif self._syntax.bare and self._buffer[0] in ";,":
            self._use(1)
            return bool(self._buffer)
        elif self._syntax.bare and self._buffer[0] == "{":
            self._begin_call(opening=0)
            return True
        self._block, self._told, self._state = "", False, self._text
        return bool(self._buffer)

    # --- what comes out -----------------------------------------------------------------------------------------------

    def _skip_space(self) -> bool:
        """Whether anything is left behind the white space."""
        self._use(len(self._buffer) - len(self._buffer.lstrip(_SPACE)))
        return bool(self._buffer)

    def _no_call(self) -> bool:
        """The opening is text after all, and what came since is looked at again; if a call was told already, only
        the rest is text."""
        if not self._told:
            self._say(self._block[: self._opening])
            self._buffer = self._block[self._opening :] + self._buffer
        self._block, self._told, self._state = "", False, self._text
        return bool(self._buffer)

    def _say(self, text: str) -> None:
        if not text:
            return
        if not self._spoken:
            text = self._blank + text
            if text.isspace():
                self._blank = text
                return
            self._blank = ""
            self._spoken = True
        self._visible.append(text)

    def _tell(self, name: str, arguments: str) -> None:
        if not self._told:
            self._told, self._spoken, self._blank = True, False, ""
            call_id = f"call_{secrets.token_hex(12)}"
            self._deltas.append(ToolCallDelta(index=self.calls, id=call_id, name=name))
            self.calls += 1
        if arguments:
            self._deltas.append(ToolCallDelta(index=self.calls - 1, arguments=arguments))
