"""Rendered chats to token ids, piece by piece: what stands between special tokens is tokenized by itself and kept,
so that a system prompt and a conversation's earlier turns are not tokenized again with every request.
"""

from __future__ import annotations

import re
from array import array
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer


KEPT = 256  # segments used last
KEPT_CHARACTERS = 2048  # longer ones are not kept
MOST_SPECIAL_TOKENS = 2048  # looking for more of them in Python would cost more than it spares


class Segments:
    """`encode` gives exactly what the tokenizer gives for the whole text without adding special tokens.

    That can be promised where special tokens cut a text before anything else happens and no step knows where in
    the text it is; other tokenizers are handed the whole text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._special = _cutting_tokens(tokenizer)
        longest_first = sorted(self._special, key=len, reverse=True)
        self._cut = re.compile(f"({'|'.join(map(re.escape, longest_first))})").split
        self._kept = lru_cache(maxsize=KEPT)(self._encode)

    def encode(self, text: str) -> list[int]:
        """Token ids. Errors as the tokenizer's."""
        special = self._special
        if not special:
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        ids: list[int] = []
        for piece in self._cut(text):
            token_id = special.get(piece)
            if token_id is not None:
                ids.append(token_id)
            elif piece:
                ids += self._kept(piece) if len(piece) <= KEPT_CHARACTERS else self._encode(piece)
        return ids

    def _encode(self, piece: str) -> array[int]:
        return array("I", self._tokenizer.encode(piece, add_special_tokens=False).ids)


def _cutting_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """The added tokens that are found in the text as it is, with their ids; none where pieces depend on each other."""
    added = tokenizer.get_added_tokens_decoder()
    if len(added) > MOST_SPECIAL_TOKENS or tokenizer.encode_special_tokens:
        return {}
    if any(token.lstrip or token.rstrip or token.single_word for token in added.values()):
        return {}  # what such a token takes depends on its neighbours
    before = tokenizer.pre_tokenizer
    if before is not None and b'"Metaspace"' in before.__getstate__():
        return {}  # it treats the beginning of a text in its own way
    if getattr(tokenizer.model, "dropout", None):
        return {}  # no two encodings of it are the same
    return {
        token.content: token_id for token_id, token in added.items() if token.content and not token.normalized
    }
