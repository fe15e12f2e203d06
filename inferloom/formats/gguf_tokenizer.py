"""tokenizer.json and tokenizer_config.json from a GGUF file's metadata. The ids are those that llama.cpp gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from inferloom.errors import InvalidFormat, LoadFailed
from inferloom.formats.gguf_config import ENDS
from inferloom.formats.gguf_file import Value, flag, number, text, texts
from inferloom.formats.pretokenizers import pre_tokenizer, pretokenizing

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # tokenizer.ggml.token_type
_SPACE = "▁"
_LONGEST = 1024  # characters: every way to cut a token in two is looked up


def build(metadata: Mapping[str, Value]) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer and its configuration.

    Raises `InvalidFormat` for a damaged vocabulary or an unknown pre-tokenizer, `LoadFailed` for a kind of
    tokenizer that is not built here.
    """
    kind = text(metadata, "tokenizer.ggml.model")
    tokens = _distinct(texts(metadata, "tokenizer.ggml.tokens") or [])
    if not tokens:
        raise InvalidFormat("the GGUF file has no vocabulary (tokenizer.ggml.tokens).")
    kinds = _kinds(metadata, tokens)
    try:
        if kind == "gpt2":
            tokenizer, add_bos = _byte_pairs(metadata, tokens)
        elif kind == "llama":
            tokenizer, add_bos = _sentence_piece(metadata, tokens)
        else:
            raise LoadFailed(
                f"the GGUF file's tokenizer is of the kind {kind!r}; this version builds 'gpt2' and 'llama'. "
                "Name a Hugging Face tokenizer with `tok_model_id`."
            )
        added = [
            AddedToken(token, special=kinds[index] != _USER_DEFINED, normalized=False)
            for index, token in enumerate(tokens)
            if kinds[index] in (_UNKNOWN, _CONTROL, _USER_DEFINED)
        ]
        tokenizer.add_tokens(added)
        ids = _ids(metadata, kind, len(tokens))
        config = _config(metadata, tokens, ids, add_bos=add_bos)
        _frame(tokenizer, tokens, ids, config)
    except (InvalidFormat, LoadFailed):
        raise
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise InvalidFormat(f"the GGUF file's tokenizer cannot be built: {error}.") from error
    return tokenizer, config


def _distinct(tokens: list[str]) -> list[str]:
    """Every token its own text, as files exist with empty or repeated entries; the last one keeps the text."""
    last = {token: index for index, token in enumerate(tokens)}
    return [
        token if token and last[token] == index else f"[UNUSED_{index}]" for index, token in enumerate(tokens)
    ]


def _kinds(metadata: Mapping[str, Value], tokens: list[str]) -> list[int]:
    kinds = metadata.get("tokenizer.ggml.token_type")
    if kinds is None:
        kinds = [1] * len(tokens)
    whole = isinstance(kinds, list) and all(isinstance(kind, int) for kind in kinds)
    if not isinstance(kinds, list) or not whole or len(kinds) != len(tokens):
        raise InvalidFormat("the GGUF file's tokenizer.ggml.token_type does not fit its vocabulary.")
    # Some converters forget to mark the tokens that end a turn.
    return [_CONTROL if token in ENDS else kind for token, kind in zip(tokens, kinds, strict=True)]


def _byte_pairs(metadata: Mapping[str, Value], tokens: list[str]) -> tuple[Tokenizer, bool]:
    rule = pretokenizing(text(metadata, "tokenizer.ggml.pre"))
    merges = []
    for merge in texts(metadata, "tokenizer.ggml.merges") or []:
        left, _, right = merge.partition(" ")
        merges.append((left, right))
    if not merges:
        raise InvalidFormat("the GGUF file has no merges (tokenizer.ggml.merges).")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=rule.ignore_merges, fuse_unk=False))
    tokenizer.pre_tokenizer = pre_tokenizer(rule, vocabulary)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, rule.add_bos


def _sentence_piece(metadata: Mapping[str, Value], tokens: list[str]) -> tuple[Tokenizer, bool]:
    """A SentencePiece BPE: two neighbours are merged if their concatenation is a token, the best score first."""
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise InvalidFormat("the GGUF file's tokenizer.ggml.scores does not fit its vocabulary.")
    longest = max(tokens, key=len)
    if len(longest) > _LONGEST:
        raise InvalidFormat(f"the GGUF file's vocabulary has a token of {len(longest):,} characters.")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges: list[tuple[float, int, int, str, str]] = []
    for index, token in enumerate(tokens):
        for cut in range(1, len(token)):
            left, right = vocabulary.get(token[:cut]), vocabulary.get(token[cut:])
            if left is not None and right is not None:
                merges.append((-scores[index], left, right, token[:cut], token[cut:]))
    merges.sort()
    unknown = number(metadata, "tokenizer.ggml.unknown_token_id") or 0
    tokenizer = Tokenizer(
        models.BPE(
            vocabulary,
            [(left, right) for *_, left, right in merges],
            unk_token=tokens[unknown] if unknown < len(tokens) else None,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = flag(metadata, "tokenizer.ggml.add_space_prefix") is not False
    spaces = normalizers.Replace(" ", _SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces]) if prefix else spaces
    undo = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*undo, decoders.Strip(" ", 1, 0)] if prefix else undo)
    return tokenizer, True


def _ids(metadata: Mapping[str, Value], kind: str, count: int) -> dict[str, int]:
    """The ids of the tokens with a role, by Hugging Face's name of it."""
    defaults = {"bos": 1, "eos": 2, "unknown": 0} if kind == "llama" else {}
    found = {}
    for role, name in (("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad")):
        index = number(metadata, f"tokenizer.ggml.{role}_token_id")
        index = defaults.get(role) if index is None else index
        if index is not None and index >= count:
            raise InvalidFormat(
                f"tokenizer.ggml.{role}_token_id is {index}, the vocabulary has {count} tokens."
            )
        if index is not None:
            found[name] = index
    return found


def _config(
    metadata: Mapping[str, Value], tokens: list[str], ids: Mapping[str, int], *, add_bos: bool
) -> dict[str, Any]:
    said_bos = flag(metadata, "tokenizer.ggml.add_bos_token")
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": add_bos if said_bos is None else said_bos,
        "add_eos_token": flag(metadata, "tokenizer.ggml.add_eos_token") or False,
    }
    config |= {f"{role}_token": tokens[index] for role, index in ids.items()}
    template = text(metadata, "tokenizer.chat_template")
    named = [
        {"name": name, "template": extra}
        for name in texts(metadata, "tokenizer.chat_templates") or []
        if (extra := text(metadata, f"tokenizer.chat_template.{name}")) is not None
    ]
    if named:
        default = [{"name": "default", "template": template}] if template is not None else []
        config["chat_template"] = default + [
            entry for entry in named if entry["name"] != "default" or not default
        ]
    elif template is not None:
        config["chat_template"] = template
    return config


def _frame(
    tokenizer: Tokenizer, tokens: list[str], ids: Mapping[str, int], config: Mapping[str, Any]
) -> None:
    """Make `add_special_tokens` mean what the file says: BOS before, EOS after."""
    for role in ("bos", "eos"):
        if config[f"add_{role}_token"] and role not in ids:
            raise InvalidFormat(f"tokenizer.ggml.add_{role}_token is true, but the file names no such token.")
    before = [tokens[ids["bos"]]] if config["add_bos_token"] else []
    after = [tokens[ids["eos"]]] if config["add_eos_token"] else []
    if before or after:
        used = {token: index for role, index in ids.items() if (token := tokens[index]) in before + after}
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after],
            pair=[
                *before,
                "$A",
                *after,
                *(f"{token}:1" for token in before),
                "$B:1",
                *(f"{t}:1" for t in after),
            ],
            special_tokens=list(used.items()),
        )
