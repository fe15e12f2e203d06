"""Which files of a hub repository make a checkpoint; decided on names alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal

from inferloom.errors import InvalidFormat, SourceError, SourceNotFound

# What is needed of a repository: a model with its tokenizer, without it, the tokenizer alone, or every file there is.
Need = Literal["checkpoint", "weights", "tokenizer", "everything"]

SAFETENSORS, SAFETENSORS_INDEX = "model.safetensors", "model.safetensors.index.json"
PYTORCH, PYTORCH_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
TOKENIZER = "tokenizer.json"

_CONFIG = re.compile(
    r"config\.json|generation_config\.json|modules\.json|sentence_bert_config\.json|"
    r"config_sentence_transformers\.json|\d+_[A-Za-z]+/config\.json"
)
_TOKENIZER = re.compile(
    r"tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json|"
    r"chat_template\.(?:jinja|json)|additional_chat_templates/[\w.-]+\.jinja"
)
_PART = re.compile(r"(?P<stem>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})\.gguf")


def small_files(names: Iterable[str], need: Need) -> list[str]:
    """Configuration and tokenizer, as far as they are needed and there."""
    wanted = []
    for name in names:
        config = need != "tokenizer" and _CONFIG.fullmatch(name) is not None
        tokenizer = need != "weights" and _TOKENIZER.fullmatch(name) is not None
        if config or tokenizer or (need == "tokenizer" and name == "config.json"):
            wanted.append(name)
    return sorted(wanted)


def index_file(names: Iterable[str]) -> str | None:
    """The index that says which shards hold the weights, if there is one and it is the one to follow."""
    present = set(names)
    if SAFETENSORS_INDEX in present:
        return SAFETENSORS_INDEX
    if PYTORCH_INDEX in present and SAFETENSORS not in present:
        return PYTORCH_INDEX
    return None


def single_weights(names: Sequence[str], repo: str) -> list[str]:
    """The weights of a repository without an index. Raises `SourceError` if one of several GGUF files has to be
    named, and `InvalidFormat` if there are none."""
    present = set(names)
    for name in (SAFETENSORS, PYTORCH):
        if name in present:
            return [name]
    choices = gguf_choices(names)
    if len(choices) == 1:
        return gguf_parts(choices[0], names, repo)
    if choices:
        listed = "".join(f"\n  {repo}#{name}" for name in choices)
        raise SourceError(f"{repo} holds several GGUF files; name the one you want:{listed}")
    loose = [name for name in names if name.endswith(".safetensors") and "/" not in name]
    if len(loose) == 1:
        return loose
    raise InvalidFormat(f"{repo} holds no weights: neither {SAFETENSORS}, nor {PYTORCH}, nor a GGUF file.")


def gguf_choices(names: Iterable[str]) -> list[str]:
    """The GGUF models among `names`, each by its first part; projectors of images are none."""
    choices = []
    for name in names:
        match = _PART.fullmatch(name)
        first = match is None or int(match["index"]) == 1
        if name.endswith(".gguf") and first and not name.rpartition("/")[2].startswith("mmproj"):
            choices.append(name)
    return sorted(choices)


def gguf_parts(name: str, names: Iterable[str], repo: str) -> list[str]:
    """`name` with the other parts of its model. Raises `SourceNotFound` for what the repository lacks."""
    present = set(names)
    match = _PART.fullmatch(name)
    wanted = [name]
    if match is not None:
        count = int(match["count"])
        wanted = [
            f"{match['stem']}-{index:05}-of-{match['count']}.gguf" for index in range(1, min(count, 9999) + 1)
        ]
    for part in wanted:
        if part not in present:
            offered = "".join(f"\n  {repo}#{choice}" for choice in gguf_choices(names))
            raise SourceNotFound(f"{repo} has no file {part!r}" + (f"; it has:{offered}" if offered else "."))
    return wanted
