from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertTokenizer, GPT2Tokenizer, Qwen2Tokenizer, RobertaTokenizer

from inferloom.errors import InvalidFormat, InvalidRequest, LoadFailed
from inferloom.formats.checkpoint import Checkpoint
from inferloom.text.codec import TextCodec
from inferloom.text.tokenizer_files import GenerationDefaults
from inferloom.types import ChatMessage, Tool

HELLO = [ChatMessage(role="user", content="Hello")]


def test_text_survives_a_round_trip(byte_bpe: Tokenizer) -> None:
    codec = TextCodec(byte_bpe)
    text = "Grüße, 世界! 🙂 don't <|im_end|>"
    ids = codec.encode(text, add_special_tokens=False)
    assert codec.decode(ids, skip_special_tokens=False) == text
    assert codec.decode(ids) == text.replace("<|im_end|>", "")
    assert codec.encode_batch([text, "a"], add_special_tokens=False) == [
        ids,
        codec.encode("a", add_special_tokens=False),
    ]


def test_the_built_in_tokenizer_is_bytes_and_chatml() -> None:
    codec = TextCodec.for_bytes()
    text = codec.render_chat(HELLO)
    assert text == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    ids = codec.encode_prompt(text)
    assert ids[0] == 257
    assert bytes(ids[1:5]) == b"user"
    assert codec.vocab_size == 259
    assert codec.eos_token_ids == {258}


def test_the_built_in_tokenizer_takes_the_operators_template() -> None:
    codec = TextCodec.for_bytes(chat_template="{{ messages[0]['content'] }}!")
    assert codec.render_chat([ChatMessage(role="user", content="Hello")]) == "Hello!"


def test_lone_surrogates_and_impossible_ids_are_refused_with_a_sentence() -> None:
    codec = TextCodec.for_bytes()
    with pytest.raises(InvalidRequest, match="lone surrogate"):
        codec.encode("a\ud800", add_special_tokens=True)
    with pytest.raises(InvalidRequest, match="lone surrogate"):
        codec.encode_batch(["a\ud800"], add_special_tokens=True)
    for ids in ([-1], [1 << 40]):
        with pytest.raises(InvalidRequest, match="token ids") as caught:
            codec.decode(ids)
        assert caught.value.param == "tokens"


# --- BOS and EOS ------------------------------------------------------------------------------------------------------


def test_a_bos_that_the_text_begins_with_is_not_doubled(llama_bpe: Tokenizer) -> None:
    codec = TextCodec(llama_bpe, special_tokens={"bos_token": "<s>"})
    assert codec.encode("the", add_special_tokens=True)[:2] == [1, llama_bpe.token_to_id("▁the")]
    assert codec.encode("<s>the", add_special_tokens=True).count(1) == 1
    assert codec.encode_prompt("<s>the").count(1) == 1


@pytest.mark.parametrize(("flag", "begins"), [(True, True), (False, False), (None, True)])
def test_add_bos_token_is_obeyed_where_it_is_written_down(
    flag: bool | None, begins: bool, llama_bpe: Tokenizer
) -> None:
    codec = TextCodec(llama_bpe, special_tokens={"bos_token": "<s>"}, add_bos=flag)
    assert (codec.encode("the", add_special_tokens=True)[0] == 1) is begins
    for special in (True, False):
        assert codec.encode("<s>the", add_special_tokens=special).count(1) == 1


def test_add_bos_and_eos_work_where_the_tokenizer_itself_adds_nothing(byte_bpe: Tokenizer) -> None:
    special = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    codec = TextCodec(byte_bpe, special_tokens=special, add_bos=True, add_eos=True)
    bos, eos = byte_bpe.token_to_id("<|im_start|>"), byte_bpe.token_to_id("<|im_end|>")
    ids = codec.encode("a", add_special_tokens=True)
    assert (ids[0], ids[-1], len(ids)) == (bos, eos, 3)
    assert codec.encode("a", add_special_tokens=False) == ids[1:-1]


def test_end_tokens_are_those_of_config_generation_config_and_tokenizer(
    make_checkpoint, byte_bpe: Tokenizer
) -> None:
    checkpoint = make_checkpoint(
        byte_bpe,
        config_JSON={"eos_token_id": 11, "bos_token_id": 1},
        generation_config_JSON={"eos_token_id": [12, 13]},
        tokenizer_config_JSON={"eos_token": {"content": "<|im_end|>"}},
    )
    codec = TextCodec.load(checkpoint)
    assert codec.eos_token_ids == {11, 12, 13, byte_bpe.token_to_id("<|im_end|>")}
    assert codec.bos_token_id == 1


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, GenerationDefaults()),
        (
            {
                "do_sample": True,
                "temperature": 0.6,
                "top_p": 0.95,
                "top_k": 20,
                "min_p": 0,
                "repetition_penalty": 1.1,
            },
            GenerationDefaults(temperature=0.6, top_p=0.95, top_k=20, min_p=0.0, repetition_penalty=1.1),
        ),
        ({"do_sample": False, "temperature": 0.6}, GenerationDefaults(temperature=0.0)),
        ({"temperature": None, "top_k": "many"}, GenerationDefaults()),
    ],
)
def test_sampling_defaults_come_from_generation_config(make_checkpoint, byte_bpe, config, expected) -> None:
    codec = TextCodec.load(make_checkpoint(byte_bpe, generation_config_JSON=config))
    assert codec.generation_defaults == expected


# --- templates of a checkpoint ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config_JSON": {"chat_template": "found"}},
        {"tokenizer_config_JSON": {"chat_template": [{"name": "default", "template": "found"}]}},
        {"tokenizer_config_JSON": {"chat_template": "overruled"}, "chat_template_JINJA": "found"},
        {
            "tokenizer_config_JSON": {"chat_template": "overruled"},
            "chat_template_JSON": {"chat_template": "found"},
        },
        {"chat_templates__default_JINJA": "found"},
        {"additional_chat_templates__default_JINJA": "found"},
    ],
)
def test_the_template_is_found_wherever_checkpoints_keep_it(make_checkpoint, byte_bpe, files) -> None:
    assert TextCodec.load(make_checkpoint(byte_bpe, **files)).render_chat(HELLO) == "found"


def test_a_template_named_tool_use_serves_requests_with_tools(make_checkpoint, byte_bpe) -> None:
    native = "{{ tools | length }} tools, <tool_call>"
    listed = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": native}]
    codec = TextCodec.load(make_checkpoint(byte_bpe, tokenizer_config_JSON={"chat_template": listed}))
    assert codec.render_chat(HELLO) == "plain"
    assert codec.render_chat(HELLO, tools=[Tool(name="now")]) == "1 tools, <tool_call>"


def test_several_templates_without_a_default_are_refused_with_their_names(make_checkpoint, byte_bpe) -> None:
    checkpoint = make_checkpoint(byte_bpe, chat_templates__rag_JINJA="a", chat_templates__web_JINJA="b")
    with pytest.raises(InvalidRequest, match=r"rag, web.*chat_template="):
        TextCodec.load(checkpoint).render_chat(HELLO)


def test_the_operators_template_wins_as_text_as_path_and_as_json(
    make_checkpoint, byte_bpe, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(byte_bpe, chat_template_JINJA="own")
    (tmp_path / "mine.jinja").write_text("from a file")
    (tmp_path / "mine.json").write_text(json.dumps({"chat_template": "from json"}))
    path = str(tmp_path / "mine.jinja")

    def rendered(**given: str) -> str:
        return TextCodec.load(checkpoint, **given).render_chat(HELLO)

    assert rendered(chat_template="{{ 'text' }}") == "text"
    assert rendered(chat_template=path) == "from a file"
    assert rendered(chat_template=str(tmp_path / "mine.json")) == "from json"
    assert rendered(chat_template="{{ 'text' }}", jinja_explicit=path) == "from a file"
    with pytest.raises(LoadFailed, match=r"chat_template: there is no file 'nowhere.jinja'"):
        rendered(chat_template="nowhere.jinja")


def test_special_tokens_reach_the_template(make_checkpoint, byte_bpe) -> None:
    template = "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}"
    files = {
        "tokenizer_config_JSON": {"chat_template": template, "bos_token": "<|im_start|>"},
        "special_tokens_map_JSON": {"pad_token": {"content": "<|endoftext|>"}},
        "config_JSON": {"eos_token_id": byte_bpe.token_to_id("<|im_end|>")},
    }
    codec = TextCodec.load(make_checkpoint(byte_bpe, **files))
    assert codec.render_chat(HELLO) == "<|im_start|>|<|im_end|>|<|endoftext|>"


# --- tokenizer files ----------------------------------------------------------------------------------------------------


def test_another_folders_tokenizer_wins(make_checkpoint, byte_bpe, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(byte_bpe, config_JSON={"eos_token_id": 7})
    other = tmp_path / "other"
    other.mkdir()
    small = Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    small.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    small.save(str(other / "tokenizer.json"))
    (other / "chat_template.jinja").write_text("other")
    codec = TextCodec.load(
        Checkpoint(
            source="s",
            name="n",
            folder=checkpoint.folder,
            weights=(),
            format="safetensors",
            tokenizer_folder=str(other),
        )
    )
    assert codec.encode("ab", add_special_tokens=False) == [0, 1]
    assert codec.render_chat(HELLO) == "other"
    assert codec.eos_token_ids == {7}


@pytest.mark.parametrize("reference_class", [GPT2Tokenizer, Qwen2Tokenizer])
def test_vocab_and_merges_make_the_tokenizer_that_transformers_makes(
    make_checkpoint, byte_bpe, reference_class: type
) -> None:
    state = json.loads(byte_bpe.to_str())["model"]
    merges = "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in state["merges"])
    special = {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    config = {"tokenizer_class": reference_class.__name__, **special}
    checkpoint = make_checkpoint(vocab_JSON=state["vocab"], merges_TXT=merges, tokenizer_config_JSON=config)
    codec = TextCodec.load(checkpoint)
    folder = Path(checkpoint.folder)
    reference = reference_class(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), **special
    )
    for text in (
        "The capital of France is Paris.",
        " Grüße 世界",
        "a<|endoftext|>b",
        "we'LL  pay\n\n12345 €!!\n",
        "e\u0301",
    ):
        ids = codec.encode(text, add_special_tokens=False)
        assert ids == reference(text, add_special_tokens=False)["input_ids"]


def test_a_roberta_vocabulary_frames_its_texts(make_checkpoint, byte_bpe) -> None:
    state = json.loads(byte_bpe.to_str())["model"]
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *state["vocab"]]
    files = {
        "vocab_JSON": {word: index for index, word in enumerate(words)},
        "merges_TXT": "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in state["merges"]),
        "config_JSON": {"model_type": "roberta"},
        "tokenizer_config_JSON": {"tokenizer_class": "RobertaTokenizer"},
    }
    checkpoint = make_checkpoint(**files)
    folder = Path(checkpoint.folder)
    reference = RobertaTokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))
    for text in ("The capital of France", "", " Grüße"):
        assert (
            TextCodec.load(checkpoint).encode(text, add_special_tokens=True) == reference(text)["input_ids"]
        )


def test_words_that_are_cut_in_an_unknown_way_are_refused(make_checkpoint, byte_bpe) -> None:
    files = {"vocab_JSON": {"a": 0}, "merges_TXT": "#version: 0.2\n"}
    with pytest.raises(InvalidFormat, match=r"is a CodeGenTokenizer.*tokenizer\.json is needed"):
        TextCodec.load(
            make_checkpoint(**files, tokenizer_config_JSON={"tokenizer_class": "CodeGenTokenizer"})
        )


def test_a_wordpiece_vocabulary_makes_the_tokenizer_that_transformers_makes(make_checkpoint) -> None:
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "the",
        "capital",
        "##s",
        "of",
        "paris",
        "caf",
        "##e",
        ",",
        ".",
    ]
    checkpoint = make_checkpoint(
        vocab_TXT="\n".join(words) + "\n", tokenizer_config_JSON={"do_lower_case": True}
    )
    codec = TextCodec.load(checkpoint)
    reference = BertTokenizer(vocab=str(Path(checkpoint.folder, "vocab.txt")))
    for text in ("The Capitals of Paris, Café.", "unknown", ""):
        assert codec.encode(text, add_special_tokens=True) == reference(text)["input_ids"]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, r"no tokenizer in .*tok_model_id"),
        ({"tokenizer_JSON": "{"}, "the tokenizer in .* cannot be read"),
        ({"tokenizer_JSON": {"model": {}}}, "the tokenizer in .* cannot be read"),
        (
            {"tokenizer_JSON": "{}", "tokenizer_config_JSON": "[1]"},
            "tokenizer_config.json holds no JSON object",
        ),
        ({"tokenizer_JSON": "{}", "config_JSON": "{]"}, "config.json cannot be read as JSON"),
        ({"vocab_TXT": "a\nb\n"}, r"\[CLS\]"),
    ],
)
def test_files_that_cannot_be_read_are_an_invalid_format_with_the_reason(
    make_checkpoint, files, words
) -> None:
    with pytest.raises(InvalidFormat, match=f"^invalid format: .*{words}"):
        TextCodec.load(make_checkpoint(**files))
