from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from inferloom.text.codec import TextCodec
from inferloom.text.detokenizer import ByteDetokenizer, PieceDetokenizer, WindowDetokenizer

PROPERTY = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)


def pieces_of(codec: TextCodec, ids: list[int], sizes: list[int], *, skip: bool) -> list[str]:
    detokenizer = codec.detokenizer(skip_special_tokens=skip)
    pieces, position = [], 0
    for size in sizes:
        pieces.append(detokenizer.push(ids[position : position + size]))
        position += size
    pieces += [detokenizer.push(ids[position:]), detokenizer.flush()]
    return pieces


@PROPERTY
@given(data=st.data())
def test_the_pieces_of_any_token_sequence_join_to_what_decoding_it_whole_gives(
    any_tokenizer: Tokenizer, data: st.DataObject
) -> None:
    codec = TextCodec(any_tokenizer)
    ids = data.draw(st.lists(st.integers(0, codec.vocab_size - 1), max_size=25))
    sizes = data.draw(st.lists(st.integers(0, 4), max_size=10))
    skip = data.draw(st.booleans())
    assert "".join(pieces_of(codec, ids, sizes, skip=skip)) == any_tokenizer.decode(
        ids, skip_special_tokens=skip
    )


@PROPERTY
@given(text=st.text(max_size=40))
def test_no_piece_ends_within_a_character(byte_bpe: Tokenizer, text: str) -> None:
    codec = TextCodec(byte_bpe)
    ids = codec.encode(text, add_special_tokens=False)
    pieces = pieces_of(codec, ids, [1] * len(ids), skip=False)
    assert "".join(pieces) == byte_bpe.decode(ids, skip_special_tokens=False)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def test_each_kind_of_decoder_is_read_token_by_token_where_that_is_possible(
    byte_bpe: Tokenizer, llama_bpe: Tokenizer, wordpiece: Tokenizer, other_decoder: Tokenizer
) -> None:
    assert isinstance(TextCodec(byte_bpe).detokenizer(), ByteDetokenizer)
    assert isinstance(TextCodec(llama_bpe).detokenizer(), PieceDetokenizer)
    assert isinstance(TextCodec(wordpiece).detokenizer(), PieceDetokenizer)
    assert isinstance(TextCodec(other_decoder).detokenizer(), WindowDetokenizer)


def test_an_emoji_is_held_back_until_its_last_byte() -> None:
    codec = TextCodec.for_bytes()
    detokenizer = codec.detokenizer()
    assert [detokenizer.push([byte]) for byte in "a🙂b".encode()] == ["a", "", "", "", "🙂", "b"]


def test_incomplete_bytes_at_the_end_become_a_replacement_character() -> None:
    detokenizer = TextCodec.for_bytes().detokenizer()
    assert detokenizer.push(list(b"a\xe2\x82")) == "a"
    assert detokenizer.flush() == "\ufffd"


def test_special_tokens_are_left_out_kept_or_kept_one_by_one(byte_bpe: Tokenizer) -> None:
    codec = TextCodec(byte_bpe)
    ids = codec.encode("[TOOL_CALLS]a<|im_end|>", add_special_tokens=False)
    mark = byte_bpe.token_to_id("[TOOL_CALLS]")
    assert codec.detokenizer().push(ids) == "a"
    assert codec.detokenizer(skip_special_tokens=False).push(ids) == "[TOOL_CALLS]a<|im_end|>"
    assert codec.detokenizer(keep=frozenset({mark})).push(ids) == "[TOOL_CALLS]a"


def test_ids_outside_the_vocabulary_contribute_nothing(any_tokenizer: Tokenizer) -> None:
    codec = TextCodec(any_tokenizer)
    detokenizer = codec.detokenizer()
    assert detokenizer.push([codec.vocab_size + 7]) + detokenizer.flush() == ""


def test_the_first_words_space_is_dropped_only_where_the_decoder_drops_it(
    llama_bpe: Tokenizer, gemma_bpe: Tokenizer
) -> None:
    the = llama_bpe.token_to_id("▁the")
    assert TextCodec(llama_bpe).detokenizer().push([the, the]) == "the the"
    assert TextCodec(gemma_bpe).detokenizer().push([the, the]) == " the the"


def test_a_run_of_fallback_bytes_is_one_text_or_all_replacement_characters(llama_bpe: Tokenizer) -> None:
    codec = TextCodec(llama_bpe)
    byte = lambda value: llama_bpe.token_to_id(f"<0x{value:02X}>")  # noqa: E731
    detokenizer = codec.detokenizer()
    assert detokenizer.push([byte(0xE6), byte(0x97), byte(0xA5)]) == ""
    assert detokenizer.push([llama_bpe.token_to_id("a")]) == "日a"
    detokenizer.push([byte(0xE6), byte(0x97), byte(0xA5), byte(0xFF)])
    assert detokenizer.flush() == "\ufffd" * 4


def test_the_bytes_of_single_tokens_are_those_of_the_text(byte_bpe: Tokenizer, llama_bpe: Tokenizer) -> None:
    text = "Grüße 日本 <think>"
    codec = TextCodec(byte_bpe)
    assert b"".join(map(codec.token_bytes, codec.encode(text, add_special_tokens=False))) == text.encode()
    codec = TextCodec(llama_bpe)
    assert (
        b"".join(map(codec.token_bytes, codec.encode("the 日", add_special_tokens=False)))
        == " the 日".encode()
    )
    assert codec.token_text(llama_bpe.token_to_id("<0xE6>")) == "\ufffd"
    assert codec.token_bytes(10**6) == b""
