"""Text to token ids and back for one model: its tokenizer, chat template, end tokens and answer formats.

One `TextCodec` a model, for the event loop's thread: encoding a prompt of ordinary length takes well under a
millisecond; long inputs belong in a thread (the methods are thread-safe, detokenizers are not shared).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inferloom.errors import InvalidRequest
from inferloom.formats.checkpoint import Checkpoint
from inferloom.text.detokenizer import Detokenizer, DetokenizerFactory, byte_level_alphabet
from inferloom.text.messages import is_ordinary, message_dicts, tool_dict
from inferloom.text.reasoning import ReasoningFormat
from inferloom.text.segments import Segments
from inferloom.text.tokenizer_files import GenerationDefaults, TokenizerFiles, read_template
from inferloom.text.tool_grammar import Marks, answer_grammar, thought_rule
from inferloom.text.tools import ToolFormat
from inferloom.types import ChatMessage, Constraint, Tool

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from inferloom.text.chat_template import ChatTemplate

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class TextCodec:
    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        templates: Mapping[str, str] = {},
        special_tokens: Mapping[str, str] = {},
        add_bos: bool | None = None,
        add_eos: bool | None = None,
        end_ids: frozenset[int] = frozenset(),
        bos_id: int | None = None,
        generation_defaults: GenerationDefaults | None = None,
    ) -> None:
        """`templates`: texts by name, `default` and perhaps `tool_use`. `add_bos`, `add_eos`: what
        tokenizer_config.json says, over what the tokenizer itself does; None where it says nothing."""
        from inferloom.text.chat_template import ChatTemplate  # jinja2, as late as tokenizers

        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.tokenizer = tokenizer
        self._templates = {name: ChatTemplate(text) for name, text in templates.items()}
        self._special_tokens = dict(special_tokens)
        self._add_bos = add_bos
        self._add_eos = add_eos
        added = tokenizer.get_added_tokens_decoder()
        self._special_ids = frozenset(i for i, token in added.items() if token.special)
        self.vocab_size = max(tokenizer.get_vocab_size(with_added_tokens=True), max(added, default=-1) + 1)
        named_bos = special_tokens.get("bos_token")
        self.bos_token_id = tokenizer.token_to_id(named_bos) if named_bos else bos_id
        self._eos_id = (
            tokenizer.token_to_id(special_tokens["eos_token"]) if "eos_token" in special_tokens else None
        )
        self.eos_token_ids = end_ids if self._eos_id is None else end_ids | {self._eos_id}
        # tokenizer_config.json forbids the BOS that the tokenizer itself puts before every text
        alone = tokenizer.encode("", add_special_tokens=True).ids
        self._drops_bos = add_bos is False and alone[:1] == [self.bos_token_id]
        self.generation_defaults = generation_defaults or GenerationDefaults()
        for key, token_id in (("bos_token", self.bos_token_id), ("eos_token", min(end_ids, default=None))):
            text = None if token_id is None else tokenizer.id_to_token(token_id)
            if text is not None:
                self._special_tokens.setdefault(key, text)
        self._segments = Segments(tokenizer)
        self._detokenizers = DetokenizerFactory(tokenizer)
        written = "\n".join(templates.values())
        self.reasoning = ReasoningFormat.detect(written, tokenizer)
        self.tool_format = ToolFormat.detect(written, tokenizer, reasoning=self.reasoning)
        self._marks = Marks(tokenizer)

    @classmethod
    def load(
        cls, checkpoint: Checkpoint, *, chat_template: str | None = None, jinja_explicit: str | None = None
    ) -> TextCodec:
        """The codec of a checkpoint. `chat_template` (a text or a path) replaces the checkpoint's own template,
        `jinja_explicit` (a path) both.

        Raises `InvalidFormat` for unreadable files, `LoadFailed` for a template that cannot be used.
        """
        model_folder = Path(checkpoint.folder)
        folder = Path(checkpoint.tokenizer_folder) if checkpoint.tokenizer_folder else model_folder
        files = TokenizerFiles(folder, model_folder=model_folder)
        own = _operators_template(chat_template, jinja_explicit)
        return cls(
            files.tokenizer(),
            templates=files.chat_templates() if own is None else {"default": own},
            special_tokens=files.special_tokens(),
            add_bos=files.flag("add_bos_token"),
            add_eos=files.flag("add_eos_token"),
            end_ids=files.end_ids(),
            bos_id=files.begin_id(),
            generation_defaults=files.generation_defaults(),
        )

    @classmethod
    def for_bytes(cls, *, chat_template: str | None = None, jinja_explicit: str | None = None) -> TextCodec:
        """A tokenizer that needs no file: token ids 0 … 255 are bytes, then ChatML's three special tokens. The
        template is ChatML's too, unless there is another (as in `load`)."""
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

        vocabulary = byte_level_alphabet()
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens(
            [AddedToken(text, special=True) for text in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")]
        )
        own = _operators_template(chat_template, jinja_explicit)
        templates = {"default": CHATML if own is None else own}
        return cls(tokenizer, templates=templates, special_tokens={"eos_token": "<|im_end|>"})

    # --- tokens -----------------------------------------------------------------------------------------------------

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of a text. With `add_special_tokens` it begins and ends as the model expects, and a BOS that
        the text begins with already is not doubled."""
        try:
            ids = self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        except (UnicodeEncodeError, TypeError) as error:
            raise _unencodable(text) from error
        return self._frame(ids) if add_special_tokens else ids

    def encode_batch(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[list[int]]:
        try:
            found = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        except (UnicodeEncodeError, TypeError) as error:
            raise _unencodable(*texts) from error
        return [self._frame(one.ids) if add_special_tokens else one.ids for one in found]

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a rendered chat: its special tokens are parsed and nothing is added, as the template is
        what says how a prompt begins."""
        try:
            return self._segments.encode(text)
        except (UnicodeEncodeError, TypeError) as error:
            raise _unencodable(text) from error

    def _frame(self, ids: list[int]) -> list[int]:
        bos, eos = self.bos_token_id, self._eos_id
        if bos is not None:
            if self._drops_bos:
                ids = ids[1:]
            elif self._add_bos and ids[:1] != [bos]:
                ids = [bos, *ids]
            while ids[:2] == [bos, bos]:
                ids = ids[1:]
        if eos is not None and self._add_eos and ids[-1:] != [eos]:
            ids = [*ids, eos]
        return ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids; incomplete UTF-8 becomes U+FFFD, ids outside the vocabulary nothing."""
        try:
            return self.tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        except (OverflowError, TypeError) as error:
            raise InvalidRequest(
                "token ids must be whole numbers from 0 to 4294967295", param="tokens"
            ) from error

    def detokenizer(
        self, *, skip_special_tokens: bool = True, keep: frozenset[int] = frozenset()
    ) -> Detokenizer:
        """For one choice's tokens as they come. `keep`: special tokens that are text all the same, because a
        parser looks for them (`tool_format.marker_ids`, `reasoning_marker_ids`)."""
        return self._detokenizers.make(self._special_ids - keep if skip_special_tokens else frozenset())

    def token_text(self, token_id: int) -> str:
        """One token by itself, as logprobs show it; bytes that are no UTF-8 as U+FFFD."""
        return self.token_bytes(token_id).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for in the middle of a text; empty for an unknown id."""
        return self._detokenizers.bytes_of(token_id)

    # --- chats ------------------------------------------------------------------------------------------------------

    @property
    def has_chat_template(self) -> bool:
        return bool(self._templates)

    def render_chat(
        self,
        messages: Sequence[ChatMessage],
        *,
        tools: Sequence[Tool] = (),
        kwargs: Mapping[str, Any] = {},
    ) -> str:
        """The prompt that the model's template makes of a chat. `kwargs` (the request's chat_template_kwargs) are
        variables of the template.

        Raises `InvalidRequest`: no template, or the template's complaint.
        """
        template = self._template(tools=bool(tools) and self.tool_format.native)
        for reserved in ("messages", "tools"):
            if reserved in kwargs:
                raise InvalidRequest(
                    f"chat_template_kwargs cannot hold {reserved!r}: the request has a field of that name",
                    param="chat_template_kwargs",
                )
        prepared = self.tool_format.prepare(messages, tools)
        shown = [tool_dict(tool) for tool in tools] if self.tool_format.native else []
        return template.render(
            message_dicts(prepared, developer=template.knows_developer),
            tools=shown or None,
            variables={**self._special_tokens, **kwargs},
            ordinary=not kwargs and is_ordinary(messages),
        )

    def response_constraint(
        self, constraint: Constraint, *, reasoning: ReasoningFormat | None = None, thinking: bool = False
    ) -> Constraint:
        """A response format as the worker takes it (`json_schema`, `regex` or `lark`). With `reasoning` a thought
        may come before the answer; with `thinking` the prompt ends inside one."""
        return answer_grammar(constraint, thought=thought_rule(reasoning, self._marks, opened=thinking))

    def _template(self, *, tools: bool) -> ChatTemplate:
        wanted = ("tool_use", "default") if tools else ("default",)
        for name in wanted:
            if name in self._templates:
                return self._templates[name]
        if self._templates:
            names = ", ".join(sorted(self._templates))
            raise InvalidRequest(
                f"this model has several chat templates ({names}) and none is called default; "
                "name one in its configuration with chat_template=",
                param="messages",
            )
        raise InvalidRequest(
            "this model has no chat template; give one in its configuration with chat_template=, "
            "or use /v1/completions",
            param="messages",
        )


def _operators_template(chat_template: str | None, jinja_explicit: str | None) -> str | None:
    """The template of the configuration, if it has one."""
    if jinja_explicit is not None:
        return read_template(jinja_explicit, key="jinja_explicit")
    return None if chat_template is None else read_template(chat_template, key="chat_template")


def _unencodable(*texts: str) -> InvalidRequest:
    if any(not isinstance(text, str) for text in texts):
        return InvalidRequest("only text can be tokenized")
    return InvalidRequest("the text holds a lone surrogate, which is not a Unicode character; remove it")
