"""Tokenizing a rendered chat in pieces gives what tokenizing it whole gives."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from inferloom.text.segments import KEPT_CHARACTERS, Segments

WORDS = [
    "The capital",
    " ",
    "\n",
    "x",
    "  of 12 ",
    "é",
    "日本",
    "don't",
    "<|im_",
    "start|>",
    "▁",
    "\u00a0",
    "<s",
    "word" * 600,
]


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_pieces_give_the_ids_of_the_whole(any_tokenizer: Tokenizer, data: st.DataObject) -> None:
    tokenizer = any_tokenizer
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    text = "".join(data.draw(st.lists(st.sampled_from(special + WORDS) | st.text(max_size=5), max_size=12)))
    segments = Segments(tokenizer)
    for _ in range(2):  # the second time from what was kept
        assert segments.encode(text) == tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
def test_tokens_that_look_at_their_neighbours_are_left_to_the_tokenizer(
    byte_bpe: Tokenizer, flag: str
) -> None:
    tokenizer = Tokenizer.from_str(byte_bpe.to_str())
    tokenizer.add_special_tokens([AddedToken("<odd>", **{flag: True})])
    text = "a <odd> b<odd>c <|im_start|> <odd>"
    assert Segments(tokenizer).encode(text) == tokenizer.encode(text, add_special_tokens=False).ids


def test_the_longest_special_token_wins(byte_bpe: Tokenizer) -> None:
    tokenizer = Tokenizer.from_str(byte_bpe.to_str())
    tokenizer.add_special_tokens(["<a>", "<a><b>", "<b><c>"])
    text = "<a><b><c><a><a><b>"
    assert Segments(tokenizer).encode(text) == tokenizer.encode(text, add_special_tokens=False).ids


def test_huge_segments_are_not_kept(byte_bpe: Tokenizer) -> None:
    segments = Segments(byte_bpe)
    segments.encode("<|im_start|>" + "x" * (KEPT_CHARACTERS + 1) + "<|im_end|>")
    assert segments._kept.cache_info().currsize == 0
