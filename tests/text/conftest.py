"""Tiny tokenizers of every kind a checkpoint may bring, and folders that hold them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from inferloom.formats.checkpoint import Checkpoint

SENTENCES = [
    "The capital of France is Paris, and the capital of Italy is Rome.",
    '{"name": "get_weather", "arguments": {"city": "Paris", "days": 3, "units": ["c", "f"], "exact": true}}',
    "Grüße aus Köln: 100 € für 5 Bücher. Ça va? Niño, señor — 日本語の文章です。",
    "def add(a, b):\n    return a + b\n\n# don't, it's, we've, they're\n",
]


@pytest.fixture(scope="session")
def byte_bpe() -> Tokenizer:
    """Byte-level BPE with special tokens, and added tokens that are not special (as Qwen has them)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[
            "<|endoftext|>",
            "<|im_start|>",
            "<|im_end|>",
            "[TOOL_CALLS]",
            "<|python_tag|>",
            "[ARGS]",
        ],
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 20, trainer)
    tokenizer.add_tokens(
        [
            AddedToken(text, normalized=False)
            for text in ("<tool_call>", "</tool_call>", "<think>", "</think>")
        ]
    )
    return tokenizer


def _metaspace_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256)), "▁"]
    pieces += sorted(set("".join(SENTENCES[:2])) - {" "}) + ["▁t", "he", "▁the", "an", "▁▁"]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    return vocabulary, [("▁", "t"), ("h", "e"), ("▁t", "he"), ("a", "n"), ("▁", "▁")]


@pytest.fixture(scope="session")
def llama_bpe() -> Tokenizer:
    """SentencePiece as Llama 2 and Mistral write it: ▁ for a space, bytes where a character is missing."""
    vocabulary, merges = _metaspace_vocabulary()
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


@pytest.fixture(scope="session")
def gemma_bpe(llama_bpe: Tokenizer) -> Tokenizer:
    """The same without a space before the first word."""
    tokenizer = Tokenizer.from_str(llama_bpe.to_str())
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


@pytest.fixture(scope="session")
def metaspace_unigram() -> Tokenizer:
    """Unigram under Metaspace's own decoder (T5, XLM-R)."""
    vocabulary, _ = _metaspace_vocabulary()
    tokenizer = Tokenizer(
        models.Unigram([(piece, -float(index)) for piece, index in vocabulary.items()], 0, False)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


@pytest.fixture(scope="session")
def wordpiece() -> Tokenizer:
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "the",
        "capital",
        "##s",
        "##ing",
        "do",
        "not",
        "n",
        "'",
        "t",
        "s",
    ]
    words += [".", ",", "?", "!", "m", "re", "ve", *"abcdefghij", *(f"##{letter}" for letter in "abcdefghij")]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    return tokenizer


@pytest.fixture(scope="session")
def other_decoder() -> Tokenizer:
    """A decoder we know nothing of: words are joined with spaces, `@@` glues them."""
    words = ["<unk>", "low@@", "er", "new", "est", "@@", ".", "é", "日"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace(Regex("@@ ?"), "")])
    return tokenizer


KINDS = ["byte_bpe", "llama_bpe", "gemma_bpe", "metaspace_unigram", "wordpiece", "other_decoder"]


@pytest.fixture(scope="session", params=KINDS)
def any_tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    found: Tokenizer = request.getfixturevalue(request.param)
    return found


MakeCheckpoint = Callable[..., Checkpoint]


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> MakeCheckpoint:
    """Write files (text, or an object as JSON) into a folder and call it a checkpoint."""

    def make(tokenizer: Tokenizer | None = None, **files: object) -> Checkpoint:
        folder = tmp_path / "checkpoint"
        folder.mkdir(exist_ok=True)
        if tokenizer is not None:
            tokenizer.save(str(folder / "tokenizer.json"))
        for name, content in files.items():
            path = folder / name.replace("__", "/").replace("_JSON", ".json").replace("_TXT", ".txt").replace(
                "_JINJA", ".jinja"
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
        return Checkpoint(source="test", name="test", folder=str(folder), weights=(), format="safetensors")

    return make
