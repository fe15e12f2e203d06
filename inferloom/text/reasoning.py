"""Reasoning: text between a model's thinking marks, told apart from the answer while it streams."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_KNOWN = (("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<thinking>", "</thinking>"))


def partial_suffix(text: str, mark: str) -> int:
    """How many of the text's last characters may be the beginning of `mark` (less than all of it)."""
    for size in range(min(len(text), len(mark) - 1), 0, -1):
        if text.endswith(mark[:size]):
            return size
    return 0


class ReasoningFormat(msgspec.Struct, frozen=True):
    """The marks of a model that thinks before it answers, and their token ids where they are single tokens."""

    opening: str
    closing: str
    opening_id: int | None = None
    closing_id: int | None = None

    @classmethod
    def detect(cls, template: str, tokenizer: Tokenizer) -> ReasoningFormat | None:
        """From the chat template's text, or from added tokens of the vocabulary; None for a model without."""
        added = {token.content: i for i, token in tokenizer.get_added_tokens_decoder().items()}
        for opening, closing in _KNOWN:
            if closing in template or (opening in added and closing in added):
                return cls(opening, closing, added.get(opening), added.get(closing))
        return None

    @property
    def marker_ids(self) -> frozenset[int]:
        return frozenset(i for i in (self.opening_id, self.closing_id) if i is not None)

    def is_open(self, prompt: str) -> bool:
        """Whether the rendered prompt ends inside a thought, as some templates begin the answer."""
        return prompt.rstrip().endswith(self.opening)

    def parser(self, prompt: str = "") -> ReasoningParser:
        return ReasoningParser(self.opening, self.closing, inside=self.is_open(prompt))


class ReasoningParser:
    """Cuts one choice's text into reasoning and content. The marks, and white space around a thought, are neither."""

    def __init__(self, opening: str = "<think>", closing: str = "</think>", *, inside: bool = False) -> None:
        self._opening = opening
        self._closing = closing
        self._inside = inside
        self._held = ""
        self._trim = inside  # white space is dropped until something else comes

    def push(self, text: str) -> tuple[str, str]:
        """The reasoning and the content that became certain."""
        if not self._held and not self._inside and not self._trim and self._opening[0] not in text:
            return "", text
        reasoning: list[str] = []
        content: list[str] = []
        text, self._held = self._held + text, ""
        while text:
            mark = self._closing if self._inside else self._opening
            before, found, rest = text.partition(mark)
            if not found:
                self._hold(text, mark, reasoning if self._inside else content)
                break
            target = reasoning if self._inside else content
            if self._trim:
                before = before.lstrip()
            target.append(before.rstrip() if self._inside else before)
            self._inside = not self._inside
            self._trim = True
            text = rest
        return "".join(reasoning), "".join(content)

    def _hold(self, text: str, mark: str, target: list[str]) -> None:
        """Keep back what may be the beginning of the mark and, in a thought, the white space before it."""
        keep = partial_suffix(text, mark)
        certain = text[: len(text) - keep]
        if self._inside:
            certain = certain.rstrip()
        if self._trim:
            stripped = certain.lstrip()
            if not stripped:
                self._held = text[len(text) - keep :]
                return
            self._trim = False
            target.append(stripped)
        else:
            target.append(certain)
        self._held = text[len(certain) :]

    def flush(self) -> tuple[str, str]:
        """The answer is over: what was held back, as it is."""
        held, self._held = self._held, ""
        return (held.rstrip(), "") if self._inside else ("", held)
