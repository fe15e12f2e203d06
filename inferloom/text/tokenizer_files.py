"""A checkpoint's tokenizer files: which there are, what they say, and the tokenizer they make."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from inferloom.errors import InvalidFormat, LoadFailed

if TYPE_CHECKING:
    import tokenizers
    from tokenizers import Tokenizer

_MAX_JSON_BYTES = 512 << 20
_SPECIAL_KEYS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

# how words are cut before BPE, where no tokenizer.json says it
_GPT2_LIKE = frozenset(
    ["GPT2Tokenizer", "PreTrainedTokenizer", "RobertaTokenizer", "BartTokenizer", "LongformerTokenizer"]
)
_QWEN_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


class GenerationDefaults(msgspec.Struct, frozen=True, kw_only=True):
    """What the checkpoint's generation_config asks for; None where it is silent."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


class TokenizerFiles:
    """The parsed files of one tokenizer folder, and of the checkpoint's own folder where that is another.

    Raises `InvalidFormat` for a file that is there but cannot be read as what its name says.
    """

    def __init__(self, folder: Path, *, model_folder: Path | None = None) -> None:
        self.folder = folder
        self.model_folder = model_folder or folder
        self.tokenizer_config = _json_object(folder / "tokenizer_config.json")
        self.config = _json_object(self.model_folder / "config.json")
        self.generation_config = _json_object(self.model_folder / "generation_config.json")

    def tokenizer(self) -> Tokenizer:
        """tokenizer.json, or what vocab.json + merges.txt or vocab.txt describe."""
        from tokenizers import Tokenizer  # once a model is loaded: a server listens the sooner

        path = self.folder / "tokenizer.json"
        try:
            if path.is_file():
                return Tokenizer.from_file(str(path))
            if (self.folder / "vocab.json").is_file() and (self.folder / "merges.txt").is_file():
                return self._from_vocab_and_merges()
            if (self.folder / "vocab.txt").is_file():
                return self._from_wordpiece()
        except LoadFailed:
            raise
        except Exception as error:  # the library raises bare Exception for whatever it cannot parse
            raise InvalidFormat(f"the tokenizer in {self.folder} cannot be read: {error}") from error
        found = "tokenizer.model is there, but " if (self.folder / "tokenizer.model").is_file() else ""
        raise InvalidFormat(
            f"no tokenizer in {self.folder}: {found}one of tokenizer.json, vocab.json with merges.txt, "
            "or vocab.txt is needed; name a repository or folder that has it with tok_model_id"
        )

    def _from_vocab_and_merges(self) -> Tokenizer:
        import tokenizers

        models, added = tokenizers.models, tokenizers.AddedToken
        tokenizer = tokenizers.Tokenizer(
            models.BPE.from_file(str(self.folder / "vocab.json"), str(self.folder / "merges.txt"))
        )
        family = str(self.tokenizer_config.get("tokenizer_class", "GPT2Tokenizer")).removesuffix("Fast")
        prefix_space = bool(self.tokenizer_config.get("add_prefix_space", False))
        byte_level = tokenizers.pre_tokenizers.ByteLevel
        if family == "Qwen2Tokenizer":
            tokenizer.normalizer = tokenizers.normalizers.NFC()
            tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
                [
                    tokenizers.pre_tokenizers.Split(tokenizers.Regex(_QWEN_WORDS), behavior="isolated"),
                    byte_level(add_prefix_space=False, use_regex=False),
                ]
            )
        elif family in _GPT2_LIKE:
            tokenizer.pre_tokenizer = byte_level(add_prefix_space=prefix_space)
        else:
            raise InvalidFormat(
                f"the tokenizer in {self.folder} is a {family}, and how that cuts words is not in vocab.json and "
                "merges.txt; a tokenizer.json is needed (tok_model_id can name where it is)"
            )
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        if "roberta" in str(self.config.get("model_type", "")):
            bos, eos = (
                self._id_pair(tokenizer, "cls_token", "<s>"),
                self._id_pair(tokenizer, "sep_token", "</s>"),
            )
            tokenizer.post_processor = tokenizers.processors.RobertaProcessing(
                eos, bos, trim_offsets=True, add_prefix_space=prefix_space
            )
        else:
            tokenizer.post_processor = tokenizers.processors.ByteLevel(trim_offsets=False)
        self._add_special_tokens(tokenizer, added)
        return tokenizer

    def _from_wordpiece(self) -> Tokenizer:
        import tokenizers

        config = self.tokenizer_config
        unknown = _token_text(config.get("unk_token")) or "[UNK]"
        tokenizer = tokenizers.Tokenizer(
            tokenizers.models.WordPiece.from_file(str(self.folder / "vocab.txt"), unk_token=unknown)
        )
        lowercase = bool(config.get("do_lower_case", True))
        strip = config.get("strip_accents")
        tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(
            handle_chinese_chars=bool(config.get("tokenize_chinese_chars", True)),
            strip_accents=None if strip is None else bool(strip),
            lowercase=lowercase,
        )
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = tokenizers.decoders.WordPiece()
        cls, sep = (
            self._id_pair(tokenizer, "cls_token", "[CLS]"),
            self._id_pair(tokenizer, "sep_token", "[SEP]"),
        )
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{cls[0]}:0 $A:0 {sep[0]}:0",
            pair=f"{cls[0]}:0 $A:0 {sep[0]}:0 $B:1 {sep[0]}:1",
            special_tokens=[cls, sep],
        )
        self._add_special_tokens(tokenizer, tokenizers.AddedToken)
        return tokenizer

    def _id_pair(self, tokenizer: Tokenizer, key: str, default: str) -> tuple[str, int]:
        text = _token_text(self.tokenizer_config.get(key)) or default
        token_id = tokenizer.token_to_id(text)
        if token_id is None:
            raise InvalidFormat(f"the vocabulary in {self.folder} lacks its {key} {text!r}")
        return text, token_id

    def _add_special_tokens(self, tokenizer: Tokenizer, added: type[tokenizers.AddedToken]) -> None:
        """Added tokens in the order of their ids, so that new ones get the ids the file gives them."""
        listed = self.tokenizer_config.get("added_tokens_decoder")
        if isinstance(listed, dict):
            for _, entry in sorted(listed.items(), key=lambda item: int(item[0])):
                token = added(
                    entry["content"],
                    lstrip=bool(entry.get("lstrip", False)),
                    rstrip=bool(entry.get("rstrip", False)),
                    normalized=bool(entry.get("normalized", False)),
                    special=bool(entry.get("special", False)),
                )
                tokenizer.add_special_tokens([token]) if token.special else tokenizer.add_tokens([token])
        extra = _json_object(self.folder / "added_tokens.json")
        for text, _ in sorted(extra.items(), key=lambda item: int(item[1])):
            if tokenizer.token_to_id(text) is None:
                tokenizer.add_tokens([added(text, normalized=False)])
        known = [text for text in self.special_tokens().values() if tokenizer.token_to_id(text) is not None]
        tokenizer.add_special_tokens([added(text, normalized=False, special=True) for text in known])

    def special_tokens(self) -> dict[str, str]:
        """`bos_token`, `eos_token`, … by their text, as far as the files name them."""
        mapped = _json_object(self.folder / "special_tokens_map.json")
        found: dict[str, str] = {}
        for key in _SPECIAL_KEYS:
            named = self.tokenizer_config if key in self.tokenizer_config else mapped
            text = _token_text(named.get(key))
            if text is not None:
                found[key] = text
        return found

    def flag(self, key: str) -> bool | None:
        """A boolean of tokenizer_config.json, None where it is not given."""
        value = self.tokenizer_config.get(key)
        return value if isinstance(value, bool) else None

    def end_ids(self) -> frozenset[int]:
        """End tokens by id: config.json and generation_config.json together."""
        nested = self.config.get("text_config")
        places = [self.config, self.generation_config, nested if isinstance(nested, dict) else {}]
        ids: set[int] = set()
        for place in places:
            value = place.get("eos_token_id")
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, int) and not isinstance(item, bool) and item >= 0:
                    ids.add(item)
        return frozenset(ids)

    def begin_id(self) -> int | None:
        value = self.config.get("bos_token_id")
        return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None

    def generation_defaults(self) -> GenerationDefaults:
        """`do_sample: false` means greedy where it is written down; its absence means nothing."""
        config = self.generation_config
        number = _number
        greedy = config.get("do_sample") is False
        top_k = number(config.get("top_k"))
        return GenerationDefaults(
            temperature=0.0 if greedy else number(config.get("temperature")),
            top_p=number(config.get("top_p")),
            top_k=None if top_k is None else int(top_k),
            min_p=number(config.get("min_p")),
            repetition_penalty=number(config.get("repetition_penalty")),
        )

    def chat_templates(self) -> dict[str, str]:
        """Templates by name (`default`, `tool_use` …). A file of its own wins over tokenizer_config.json."""
        found: dict[str, str] = {}
        configured = self.tokenizer_config.get("chat_template")
        if isinstance(configured, str):
            found["default"] = configured
        elif isinstance(configured, list):
            for entry in configured:
                if isinstance(entry, dict) and isinstance(entry.get("template"), str):
                    found[str(entry.get("name", "default"))] = entry["template"]
        elif isinstance(configured, dict):
            found.update({str(name): text for name, text in configured.items() if isinstance(text, str)})
        legacy = _json_object(self.folder / "chat_template.json").get("chat_template")
        if isinstance(legacy, str):
            found["default"] = legacy
        for name in ("additional_chat_templates", "chat_templates"):
            for path in sorted((self.folder / name).glob("*.jinja")):
                found[path.stem] = _text(path)
        own = self.folder / "chat_template.jinja"
        if own.is_file():
            found["default"] = _text(own)
        return found


def read_template(value: str, *, key: str) -> str:
    """A template given by the operator: its text, the path of a Jinja file, or of a JSON file with `chat_template`."""
    if "{%" in value or "{{" in value or "\n" in value:
        return value
    path = Path(value).expanduser()
    if not path.is_file():
        raise LoadFailed(f"{key}: there is no file {value!r}, and it is not the text of a template either")
    if path.suffix == ".json":
        text = _json_object(path).get("chat_template")
        if not isinstance(text, str):
            raise LoadFailed(f"{key}: {value} has no text under the key chat_template")
        return text
    return _text(path)


def _token_text(value: Any) -> str | None:
    """A token as files write it: text, or an object with `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidFormat(f"{path} cannot be read as text: {error}") from error


def _json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no such file."""
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise InvalidFormat(f"{path} is larger than {_MAX_JSON_BYTES >> 20} MiB")
        value = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError, RecursionError) as error:
        raise InvalidFormat(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidFormat(f"{path} holds no JSON object")
    return value
