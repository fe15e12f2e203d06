"""How `tokenizer.ggml.pre` says a text is cut into words before byte-pair merging.

The names and patterns are those of llama.cpp (src/llama-vocab.cpp): the format's own definition. Every pattern cuts
the pieces the one before it left, matches and gaps alike.
"""

from __future__ import annotations

import re
from collections.abc import Container

import msgspec
from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer, Sequence, Split

from inferloom.errors import InvalidFormat

_CONTRACTION = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_DIGIT = r"\p{N}"
_LLAMA3 = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_QWEN2 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_UPPER, _LOWER = r"((?=[\p{L}])([^a-z]))", r"((?=[\p{L}])([^A-Z]))"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
)


class PreTokenizing(msgspec.Struct, frozen=True):
    """`ignore_merges`: a word that is a token as a whole is that token, whatever the merges say."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False  # where the file does not say


_DEFAULT = PreTokenizing((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"))
_KINDS = (
    (("default",), _DEFAULT),
    (
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
        PreTokenizing((_DIGIT, _GPT2)),
    ),
    (("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "gigachat"), PreTokenizing((_GPT2,))),
    (("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan"), PreTokenizing((_QWEN2,))),
    (
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "midm-2.0", "lfm2"),
        PreTokenizing((_LLAMA3,), ignore_merges=True, add_bos=True),
    ),
    (("smaug-bpe", "dbrx", "chatglm-bpe", "glm4"), PreTokenizing((_LLAMA3,))),
    (("tekken",), PreTokenizing((_TEKKEN,), ignore_merges=True, add_bos=True)),
    (("gpt-4o", "llama4"), PreTokenizing((_GPT4O,))),
    (("deepseek-v3",), PreTokenizing((r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK3))),
    (
        ("deepseek-coder",),
        PreTokenizing((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", _DIGIT)),
    ),
    (("falcon",), PreTokenizing((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]"))),
)
_BY_NAME = {name: kind for names, kind in _KINDS for name in names}


def pretokenizing(name: str | None) -> PreTokenizing:
    """The rule called `name`; files that name none are cut by the default one. Raises `InvalidFormat` if unknown."""
    if name is None:
        return _DEFAULT
    rule = _BY_NAME.get(name)
    if rule is None:
        raise InvalidFormat(
            f"the GGUF file's pre-tokenizer {name!r} (tokenizer.ggml.pre) is not known to this version; "
            "name a Hugging Face tokenizer with `tok_model_id`."
        )
    return rule


def pre_tokenizer(rule: PreTokenizing, vocabulary: Container[str]) -> PreTokenizer:
    """The rule as a pre-tokenizer; the pieces come out in GPT-2's byte alphabet.

    Bytes for which the vocabulary has no token are left out, as there is no id for them; what stands on both sides of
    one is not merged.
    """
    steps: list[PreTokenizer] = [Split(Regex(pattern), "isolated") for pattern in rule.patterns]
    steps.append(ByteLevel(add_prefix_space=False, use_regex=False))
    missing = "".join(sorted(byte for byte in ByteLevel.alphabet() if byte not in vocabulary))
    if missing:
        steps.append(Split(Regex(f"[{re.escape(missing)}]"), "removed"))
    return Sequence(steps)
