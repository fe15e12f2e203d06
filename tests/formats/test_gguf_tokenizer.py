"""Tokenizers out of GGUF files give the ids that llama.cpp gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from factories import gguf, llamacpp
from tokenizers import Tokenizer

from inferloom.errors import InferloomError, InvalidFormat, LoadFailed
from inferloom.formats import gguf_tokenizer
from inferloom.formats.checkpoint import Checkpoint
from inferloom.formats.gguf_file import GgufFile


def build(path: Path) -> tuple[Tokenizer, dict[str, object]]:
    with GgufFile(path) as file:
        return gguf_tokenizer.build(file.metadata)


def test_the_starters_ids_equal_llama_cpps_on_a_thousand_texts(smollm2_checkpoint: Checkpoint) -> None:
    from inferloom.sources import packages
    from inferloom.sources.reference import PackageRef, parse

    ref = parse("smollm2").ref
    assert isinstance(ref, PackageRef)
    path = packages.unpacked(ref)
    assert path is not None
    ours = Tokenizer.from_file(f"{smollm2_checkpoint.folder}/tokenizer.json")
    with llamacpp.tokenizer(path) as theirs:
        for index, text in enumerate(llamacpp.unicode_texts(1000, seed=20)):
            add = index % 2 == 0
            assert ours.encode(text, add_special_tokens=add).ids == theirs(text, add), repr(text)


@pytest.mark.parametrize(
    "pre",
    [
        "default",
        "gpt-2",
        "smollm",
        "qwen2",
        "llama-bpe",
        "smaug-bpe",
        "tekken",
        "gpt-4o",
        "deepseek-v3",
        "falcon",
    ],
)
def test_words_are_cut_as_the_files_pre_tokenizer_says(pre: str, tmp_path: Path) -> None:
    path = gguf.write(tmp_path / "model.gguf", vocabulary=gguf.byte_vocabulary(pre, size=900))
    ours, _ = build(path)
    with llamacpp.tokenizer(path) as theirs:
        for text in llamacpp.unicode_texts(150, seed=3):
            assert ours.encode(text).ids == theirs(text, True), repr(text)


@pytest.mark.parametrize("prefix", [True, False])
def test_pieces_with_scores_are_merged_best_first(prefix: bool, tmp_path: Path) -> None:
    vocabulary = gguf.piece_vocabulary(add_space_prefix=prefix)
    path = gguf.write(tmp_path / "model.gguf", vocabulary=vocabulary)
    ours, _ = build(path)
    with llamacpp.tokenizer(path) as theirs:
        for text in llamacpp.unicode_texts(300, seed=4):
            assert ours.encode(text).ids == theirs(text, True), repr(text)
    assert ours.decode(ours.encode("The fox, naïve 🙂").ids) == "The fox, naïve 🙂"


@pytest.mark.parametrize(("bos", "eos"), [(True, True), (False, False), (True, False), (None, None)])
def test_bos_and_eos_are_added_as_the_file_says(bos: bool | None, eos: bool | None, tmp_path: Path) -> None:
    flags = {"add_bos_token": bos, "add_eos_token": eos}
    path = gguf.write(tmp_path / "model.gguf", vocabulary=gguf.byte_vocabulary("gpt-2", **flags))
    ours, config = build(path)
    assert config["add_bos_token"] == bool(bos)
    ids = ours.encode("fox", add_special_tokens=True).ids
    assert (ids[0] == 0, ids[-1] == 1) == (bool(bos), bool(eos))
    bare = ours.encode("fox", add_special_tokens=False).ids
    assert bare == ids[int(bool(bos)) : len(ids) - int(bool(eos))]


def test_bytes_that_the_vocabulary_lacks_are_left_out(tmp_path: Path) -> None:
    vocabulary = gguf.byte_vocabulary("gpt-2")
    byte = vocabulary.tokens.index("ñ")  # 0xF1, which begins the code points from U+40000 on
    vocabulary.tokens[byte] = "neverthere"
    path = gguf.write(tmp_path / "model.gguf", vocabulary=vocabulary)
    ours, _ = build(path)
    with llamacpp.tokenizer(path) as theirs:
        for text in ("a\U00041234b", "\U00041234", " \U00041234\U00045678 fox"):
            assert ours.encode(text).ids == theirs(text, True)


def test_special_tokens_have_their_roles_and_templates_their_names(tmp_path: Path) -> None:
    keys = {
        "tokenizer.chat_template": "{{ 'plain' }}",
        "tokenizer.chat_templates": ["tool_use"],
        "tokenizer.chat_template.tool_use": "{{ 'tools' }}",
    }
    ours, config = build(gguf.write(tmp_path / "model.gguf", keys=keys))
    assert (config["bos_token"], config["eos_token"]) == ("<|begin|>", "<|im_end|>")
    assert config["chat_template"] == [
        {"name": "default", "template": "{{ 'plain' }}"},
        {"name": "tool_use", "template": "{{ 'tools' }}"},
    ]
    assert ours.encode("a<|im_end|>b").ids.count(1) == 1
    assert ours.decode(ours.encode("a<|im_end|>b").ids, skip_special_tokens=True) == "ab"


def test_empty_and_repeated_tokens_keep_their_ids(tmp_path: Path) -> None:
    vocabulary = gguf.byte_vocabulary("gpt-2")
    count = len(vocabulary.tokens)
    vocabulary.tokens += ["", "<|extra|>", "<|extra|>"]
    vocabulary.kinds += [1, 4, 4]
    ours, _ = build(gguf.write(tmp_path / "model.gguf", vocabulary=vocabulary))
    assert ours.get_vocab_size() == count + 3
    assert ours.encode("<|extra|>").ids == [count + 2]


@pytest.mark.parametrize(
    ("keys", "error", "says"),
    [
        ({"tokenizer.ggml.pre": "strange-bpe"}, InvalidFormat, "pre-tokenizer 'strange-bpe'"),
        ({"tokenizer.ggml.model": "rwkv"}, LoadFailed, "of the kind 'rwkv'"),
        ({"tokenizer.ggml.tokens": None}, InvalidFormat, "no vocabulary"),
        ({"tokenizer.ggml.merges": None}, InvalidFormat, "no merges"),
        ({"tokenizer.ggml.merges": ["zzz yyy"]}, InvalidFormat, "cannot be built"),
        ({"tokenizer.ggml.token_type": [1, 1]}, InvalidFormat, "does not fit its vocabulary"),
        ({"tokenizer.ggml.token_type": ["x"] * 420}, InvalidFormat, "does not fit its vocabulary"),
        ({"tokenizer.ggml.eos_token_id": 99999}, InvalidFormat, "the vocabulary has"),
        ({"tokenizer.ggml.tokens": 3}, InvalidFormat, "not a list of texts"),
    ],
)
def test_a_tokenizer_that_cannot_be_built_says_why(
    keys: dict[str, object], error: type[InferloomError], says: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=says):
        build(gguf.write(tmp_path / "model.gguf", keys=keys))


def test_a_piece_of_absurd_length_is_refused(tmp_path: Path) -> None:
    vocabulary = gguf.piece_vocabulary()
    vocabulary.tokens[-1] = "x" * 100_000
    with pytest.raises(InvalidFormat, match="a token of 100,000 characters"):
        build(gguf.write(tmp_path / "model.gguf", vocabulary=vocabulary))


def test_the_files_written_are_what_the_libraries_read(smollm2_checkpoint: Checkpoint) -> None:
    folder = Path(smollm2_checkpoint.folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["eos_token"] == "<|im_end|>"
    assert config["add_bos_token"] is False
    assert "<|im_start|>" in config["chat_template"]
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [2, 0]
