"""Token ids to text as they come: the pieces joined are exactly what decoding all ids at once would give.

Each kind of decoder that tokenizer.json can name and that works token by token has its own class; anything else is
decoded in windows (`WindowDetokenizer`).
"""

from __future__ import annotations

import codecs
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_REPLACEMENT = "\ufffd"
_BYTE_OF = {text: value for value in range(256) for text in (f"<0x{value:02X}>", f"<0x{value:02x}>")}


class Detokenizer(ABC):
    """One choice's text. Not thread-safe; make a new one for every choice."""

    @abstractmethod
    def push(self, token_ids: Sequence[int]) -> str:
        """The text that became certain; it never ends within a character."""

    @abstractmethod
    def flush(self) -> str:
        """No token follows: the rest, incomplete bytes as U+FFFD."""


class TokenTable:
    """What each token id contributes, filled as ids are met. `dropped` ids contribute nothing."""

    def __init__(self, contribution: Callable[[int], bytes], dropped: frozenset[int]) -> None:
        self._contribution = contribution
        self._dropped = dropped
        self.texts: dict[int, str] = {}  # tokens that are whole characters
        self.bytes: dict[int, bytes] = {}  # all tokens

    def fill(self, token_id: int) -> bytes:
        data = b"" if token_id in self._dropped else self._contribution(token_id)
        self.bytes[token_id] = data
        try:
            self.texts[token_id] = data.decode()
        except UnicodeDecodeError:
            pass  # part of a character: the incremental decoder puts it together
        return data


class ByteDetokenizer(Detokenizer):
    """For decoders under which every token is a fixed string of bytes (ByteLevel)."""

    __slots__ = ("_decoder", "_pending", "_table", "_texts")

    def __init__(self, table: TokenTable) -> None:
        self._table = table
        self._texts = table.texts
        self._decoder: codecs.IncrementalDecoder | None = None
        self._pending = False

    def push(self, token_ids: Sequence[int]) -> str:
        if not self._pending:
            try:
                if len(token_ids) == 1:
                    return self._texts[token_ids[0]]
                return "".join([self._texts[token_id] for token_id in token_ids])
            except KeyError:
                pass
        known = self._table.bytes
        data = b"".join([known[i] if i in known else self._table.fill(i) for i in token_ids])
        if self._decoder is None:
            self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text = self._decoder.decode(data)
        self._pending = bool(self._decoder.getstate()[0])
        return text

    def flush(self) -> str:
        self._pending = False
        return "" if self._decoder is None else self._decoder.decode(b"", final=True)


class PieceDetokenizer(Detokenizer):
    """For decoders that turn every token into text by itself, the first one differently (Metaspace, WordPiece).

    With `byte_fallback`, tokens like `<0xE4>` are bytes: a run of them is held back to its end, because decoding
    makes the whole run U+FFFD if any of it is not UTF-8.
    """

    def __init__(
        self,
        token_of: Callable[[int], str | None],
        pieces: tuple[dict[int, str], dict[int, str]],
        piece: Callable[[str, bool], str],
        *,
        byte_fallback: bool,
        strip_left: int,
    ) -> None:
        self._token_of = token_of
        self._first_pieces, self._pieces = pieces  # caches shared by all detokenizers of a tokenizer
        self._piece = piece
        self._byte_fallback = byte_fallback
        self._strip_left = strip_left  # spaces still to be taken off the beginning of the text
        self._run = bytearray()
        self._first = True

    def push(self, token_ids: Sequence[int]) -> str:
        if not self._first and not self._run and not self._strip_left:
            try:
                return "".join([self._pieces[token_id] for token_id in token_ids])
            except KeyError:
                pass
        return self._strip("".join(self._parts(token_ids)))

    def _parts(self, token_ids: Sequence[int]) -> Iterable[str]:
        for token_id in token_ids:
            token = self._token_of(token_id)
            if token is None:
                continue
            if self._byte_fallback and token in _BYTE_OF:
                self._run.append(_BYTE_OF[token])
                self._first = False
                continue
            if self._run:
                yield self._end_run()
            cache = self._first_pieces if self._first else self._pieces
            text = cache.get(token_id)
            if text is None:
                text = cache[token_id] = self._piece(token, self._first)
            self._first = False
            yield text

    def _end_run(self) -> str:
        data, self._run = bytes(self._run), bytearray()
        try:
            return data.decode()
        except UnicodeDecodeError:
            return _REPLACEMENT * len(data)

    def _strip(self, text: str) -> str:
        while self._strip_left and text:
            if text[0] != " ":
                self._strip_left = 0
                break
            text = text[1:]
            self._strip_left -= 1
        return text

    def flush(self) -> str:
        return self._strip(self._end_run())


class WindowDetokenizer(Detokenizer):
    """For any other decoder: text is emitted once the tokens after it no longer change it."""

    _LOOKAHEAD = 4

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._said = 0

    def push(self, token_ids: Sequence[int]) -> str:
        self._ids.extend(token_ids)
        stable = self._decode(self._ids[: -self._LOOKAHEAD]).rstrip(_REPLACEMENT + " ")
        whole = self._decode(self._ids)
        while not whole.startswith(stable):
            stable = stable[:-1]
        text = stable[self._said :]
        self._said = max(self._said, len(stable))
        return text

    def flush(self) -> str:
        text = self._decode(self._ids)[self._said :]
        self._said += len(text)
        return text


def byte_level_alphabet() -> dict[str, int]:
    """GPT-2's mapping of the 256 bytes to printable characters, reversed."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(value): value for value in printable}
    others = [value for value in range(256) if value not in set(printable)]
    table.update({chr(256 + offset): value for offset, value in enumerate(others)})
    return table


_ALPHABET = byte_level_alphabet()


def byte_level_bytes(token: str) -> bytes:
    """The bytes of a token under the ByteLevel decoder; a token outside its alphabet stands for its own UTF-8."""
    try:
        return bytes([_ALPHABET[character] for character in token])
    except KeyError:
        return token.encode()


class DetokenizerFactory:
    """Makes the right detokenizer for a tokenizer. Tables are shared by all that have the same `dropped` ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = _decoder_of(tokenizer)
        self._tables: dict[frozenset[int], TokenTable] = {}
        self._pieces: dict[frozenset[int], tuple[dict[int, str], dict[int, str]]] = {}
        self._steps = None if self.byte_level else _piece_steps(self._decoder)
        self._bytes: dict[int, bytes] = {}

    @property
    def byte_level(self) -> bool:
        return self._decoder.get("type") == "ByteLevel"

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes of one token in the middle of a text; empty for an unknown id."""
        data = self._bytes.get(token_id)
        if data is None:
            data = self._bytes[token_id] = self._find_bytes(token_id)
        return data

    def _find_bytes(self, token_id: int) -> bytes:
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if self.byte_level:
            return byte_level_bytes(token)
        if self._steps is not None:
            if self._steps.byte_fallback and token in _BYTE_OF:
                return bytes([_BYTE_OF[token]])
            return self._steps.piece(token, False).encode()
        return self._tokenizer.decode([token_id], skip_special_tokens=False).encode()

    def make(self, dropped: frozenset[int]) -> Detokenizer:
        """`dropped`: ids that contribute nothing (special tokens)."""
        if self.byte_level:
            table = self._tables.get(dropped)
            if table is None:
                table = self._tables[dropped] = TokenTable(self.bytes_of, dropped)
            return ByteDetokenizer(table)
        if self._steps is not None:
            token_of = self._tokenizer.id_to_token
            return PieceDetokenizer(
                (lambda token_id: None if token_id in dropped else token_of(token_id)),
                self._pieces.setdefault(dropped, ({}, {})),
                self._steps.piece,
                byte_fallback=self._steps.byte_fallback,
                strip_left=self._steps.strip_left,
            )
        return WindowDetokenizer(
            lambda ids: self._tokenizer.decode(
                [i for i in ids if i not in dropped], skip_special_tokens=False
            )
        )


class _PieceSteps(msgspec.Struct, frozen=True):
    piece: Callable[[str, bool], str]
    byte_fallback: bool = False
    strip_left: int = 0


def _decoder_of(tokenizer: Tokenizer) -> dict[str, Any]:
    if tokenizer.decoder is None:
        return {}
    state = msgspec.json.decode(tokenizer.decoder.__getstate__())
    while state.get("type") == "Sequence" and len(state["decoders"]) == 1:
        state = state["decoders"][0]
    return dict(state)


def _piece_steps(decoder: dict[str, Any]) -> _PieceSteps | None:
    """How a token becomes text by itself, or None where tokens cannot be looked at one by one."""
    kind = decoder.get("type")
    if kind == "Metaspace":
        return _PieceSteps(_metaspace(decoder))
    if kind == "WordPiece":
        return _PieceSteps(_wordpiece(decoder))
    if kind == "Sequence":
        return _sequence_steps(decoder["decoders"])
    return None


def _metaspace(decoder: dict[str, Any]) -> Callable[[str, bool], str]:
    mark, strips = decoder["replacement"], decoder.get("prepend_scheme", "always") != "never"

    def piece(token: str, first: bool) -> str:
        # in the first token the library drops every mark, not only the first one
        return token.replace(mark, "" if first and strips else " ")

    return piece


def _wordpiece(decoder: dict[str, Any]) -> Callable[[str, bool], str]:
    prefix, cleanup = decoder["prefix"], decoder["cleanup"]
    tidied = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " do not", " 's", " 've", " 're")
    tidy = (".", "?", "!", ",", "'", "n't", "'m", " don't", "'s", "'ve", "'re")

    def piece(token: str, first: bool) -> str:
        if not first:
            token = token[len(prefix) :] if token.startswith(prefix) else " " + token
        if cleanup:
            for old, new in zip(tidied, tidy, strict=True):
                token = token.replace(old, new)
        return token

    return piece


def _sequence_steps(decoders: list[dict[str, Any]]) -> _PieceSteps | None:
    """SentencePiece as Llama and Gemma write it: Replace…, ByteFallback, Fuse, Strip."""
    replacements: list[tuple[str, str]] = []
    byte_fallback, fused, strip_left = False, False, 0
    for step in decoders:
        kind = step["type"]
        if kind == "Replace" and not byte_fallback and not fused and "String" in step["pattern"]:
            replacements.append((step["pattern"]["String"], step["content"]))
        elif kind == "ByteFallback" and not fused:
            byte_fallback = True
        elif kind == "Fuse":
            fused = True
        elif kind == "Strip" and fused and step["content"] == " " and not step["stop"] and not strip_left:
            strip_left = step["start"]
        else:
            return None

    def piece(token: str, first: bool) -> str:
        for old, new in replacements:
            token = token.replace(old, new)
        return token

    return _PieceSteps(piece, byte_fallback=byte_fallback, strip_left=strip_left)
