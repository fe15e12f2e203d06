import json
from pathlib import Path
from typing import Any

import pytest

from inferloom.config.forms import load_any
from inferloom.config.schema import Config
from inferloom.errors import ConfigError

EXAMPLES = Path(__file__).parent / "examples"

LABELLED = {
    "llama3-3b": {"alias": "llama3-3b", "Plain": {"model_id": "meta-llama/Llama-3.2-3B-Instruct"}},
    "qwen3-4b": {"Plain": {"model_id": "Qwen/Qwen3-4B"}},
    "llama-gguf": {
        "GGUF": {
            "tok_model_id": "meta-llama/Llama-3.2-3B-Instruct",
            "quantized_model_id": "bartowski/Llama-3.2-3B-Instruct-GGUF",
            "quantized_filename": "Llama-3.2-3B-Instruct-Q4_K_M.gguf",
        }
    },
}

TABLES = """\
command = "serve"
default_model_id = "Qwen/Qwen3-4B"
[global]
seed = 7
[server]
host = "0.0.0.0"
port = 1234
disable_access_log = false
[[models]]
kind = "text"
model_id = "Qwen/Qwen3-0.6B"
dtype = "bf16"
chat_template = "chat.jinja"
[models.device]
cpu = true
max_seq_len = 4096
max_batch_size = 4
[[models]]
model_id = "Qwen/Qwen3-4B"
alias = "qwen"
[models.format]
format = "gguf"
quantized_file = "q4.gguf"
tok_model_id = "Qwen/Qwen3-4B-Base"
"""


def load_json(tmp_path: Path, values: Any, **given: Any) -> Config:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    return load_any(path, **given)


def load_toml(tmp_path: Path, text: str, **given: Any) -> Config:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return load_any(path, **given)


def test_the_alias_is_the_id_and_the_model_id_stays_an_alias(tmp_path: Path) -> None:
    config = load_json(tmp_path, LABELLED)
    assert [(model.name, model.aliases) for model in config.model] == [
        ("llama3-3b", ["meta-llama/Llama-3.2-3B-Instruct"]),
        ("Qwen/Qwen3-4B", []),
        ("bartowski/Llama-3.2-3B-Instruct-GGUF", []),
    ]
    assert config.default_model is config.model[0]


def test_the_label_is_for_people(tmp_path: Path) -> None:
    (model,) = load_json(tmp_path, {"anything at all": {"Plain": {"model_id": "a/b"}}}).model
    assert (model.name, model.aliases, model.source) == ("a/b", [], "a/b")


def test_a_gguf_is_one_file_of_a_repository_or_of_a_folder(tmp_path: Path) -> None:
    model = load_json(tmp_path, LABELLED).model[2]
    assert model.source == "bartowski/Llama-3.2-3B-Instruct-GGUF#Llama-3.2-3B-Instruct-Q4_K_M.gguf"
    assert model.tok_model_id == "meta-llama/Llama-3.2-3B-Instruct"
    (tmp_path / "weights").mkdir()
    spec = {"quantized_model_id": str(tmp_path / "weights"), "quantized_filename": "m.gguf"}
    (model,) = load_json(tmp_path, {"x": {"alias": "x", "GGUF": spec}}).model
    assert model.source == str(tmp_path / "weights" / "m.gguf")
    assert model.aliases == ["weights"]  # a path is no id; its last part is


@pytest.mark.parametrize(
    ("written", "scheme"),
    [
        ("Q4K", "int4"),
        ("4", "int4"),
        (4, "int4"),
        ("q2k", "int4"),
        ("Q8_0", "int8"),
        ("6", "int8"),
        ("Q4_K_M", "int4"),
        ("int4-all", "int4-all"),
    ],
)
def test_in_situ_quantisation_becomes_the_nearest_of_ours_that_is_wide_enough(
    tmp_path: Path, written: str | int, scheme: str
) -> None:
    (model,) = load_json(tmp_path, {"x": {"Plain": {"model_id": "a/b"}, "in_situ_quant": written}}).model
    assert model.quantization == scheme
    text = f"[[models]]\nmodel_id = 'a/b'\n[models.quantization]\nisq = '{written}'\n"
    path = tmp_path / "config.toml"
    path.write_text(text)
    (model,) = load_any(path).model
    assert model.quantization == scheme


def test_what_stands_beside_the_specification_is_kept(tmp_path: Path) -> None:
    entry = {
        "Plain": {"model_id": "a/b", "dtype": "f16"},
        "chat_template": "t.jinja",
        "jinja_explicit": "e.jinja",
    }
    (model,) = load_json(tmp_path, {"x": {**entry, "num_device_layers": None, "in_situ_quant": None}}).model
    assert (model.chat_template, model.jinja_explicit, model.dtype) == ("t.jinja", "e.jinja", "float16")


def test_the_same_entries_load_from_toml(tmp_path: Path) -> None:
    text = '[llama]\nalias = "llama"\n[llama.Plain]\nmodel_id = "a/b"\n'
    (model,) = load_toml(tmp_path, text).model
    assert (model.name, model.aliases) == ("llama", ["a/b"])


def test_the_default_is_the_first_or_the_one_named(tmp_path: Path) -> None:
    for word in ("Qwen/Qwen3-4B", "bartowski/Llama-3.2-3B-Instruct-GGUF"):
        default = load_json(tmp_path, LABELLED, default_model_id=word).default_model
        assert default is not None and default.name == word
    by_canonical_name = load_json(tmp_path, LABELLED, default_model_id="meta-llama/Llama-3.2-3B-Instruct")
    assert by_canonical_name.default_model is by_canonical_name.model[0]
    in_the_file = load_json(tmp_path, {"default_model_id": "Qwen/Qwen3-4B", **LABELLED})
    assert in_the_file.default_model is in_the_file.model[1]
    with pytest.raises(ConfigError, match='"nobody" is not the name or an alias of a model'):
        load_json(tmp_path, LABELLED, default_model_id="nobody")


def test_the_newer_toml_loads(tmp_path: Path) -> None:
    config = load_toml(tmp_path, TABLES)
    assert (config.server.host, config.server.port, config.server.access_log) == ("0.0.0.0", 1234, True)
    first, second = config.model
    assert (first.name, first.dtype, first.chat_template, first.max_model_len) == (
        "Qwen/Qwen3-0.6B",
        "bfloat16",
        "chat.jinja",
        4096,
    )
    assert first.driver.options == {"max_batch_size": 4}
    assert (second.name, second.aliases, second.source) == (
        "qwen",
        ["Qwen/Qwen3-4B"],
        "Qwen/Qwen3-4B#q4.gguf",
    )
    assert second.tok_model_id == "Qwen/Qwen3-4B-Base"
    assert [model.driver.random_seed for model in config.model] == [7, 7]
    assert config.default_model is second
    assert (
        load_toml(tmp_path, TABLES, default_model_id="Qwen/Qwen3-0.6B").server.default_model
        == "Qwen/Qwen3-0.6B"
    )


def test_files_of_our_own_load_in_both_formats(tmp_path: Path) -> None:
    config = load_any(EXAMPLES / "pie.toml")
    assert config.model[0].name == "default"
    values = {"server": {"port": 1}, "model": [{"name": "a", "source": "b", "driver": {"type": "dummy"}}]}
    assert load_json(tmp_path, values).server.port == 1
    assert load_any(EXAMPLES / "pie.toml", default_model_id="default").server.default_model == "default"
    with pytest.raises(ConfigError, match="this is the older configuration schema"):
        load_any(EXAMPLES / "older.toml")
    path = tmp_path / "config"
    path.write_text(json.dumps(LABELLED))
    assert len(load_any(path).model) == 3


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"VisionPlain": {"model_id": "google/gemma-3-4b-it"}},
            '"m": VisionPlain cannot be served: images as input come with a later version.',
        ),
        (
            {"Plain": {"model_id": "a/b"}, "in_situ_quant": "MXFP4"},
            '"m": in_situ_quant: MXFP4 is a floating-point format, which has no kernels here; choose int8 or int4.',
        ),
        (
            {"Plain": {"model_id": "a/b"}, "in_situ_quant": ["Q4K"]},
            '"m": in_situ_quant must be a name such as "Q4K" or "8", not a list.',
        ),
        (
            {"Plain": {"model_id": "a/b"}, "num_device_layers": ["0:10"]},
            '"m": num_device_layers cannot be served: splitting a model over devices comes with a later version.',
        ),
        (
            {"Lora": {"model_id": "a/b"}},
            '"m": Lora cannot be served: LoRA adapters come with a later version.',
        ),
        ({"Speech": {}}, '"m": Speech cannot be served: speech comes with a later version.'),
        ({"Plain": {"model_id": "a"}, "allias": "x"}, '"m": there is no key "allias"; did you mean "alias"?'),
        ({"Plain": {"modelid": "a"}}, '"m": Plain has no key "modelid"; did you mean "model_id"?'),
        ({"Plain": {}}, '"m": model_id is missing.'),
        ({"Plain": {"model_id": 3}}, '"m": model_id must be a string, not 3.'),
        ({"Plain": "a/b"}, '"m": Plain must be a table, not the string "a/b".'),
        ({"alias": "x"}, '"m" needs exactly one model specification, such as Plain or GGUF; found none.'),
        (
            {"Plain": {"model_id": "a"}, "GGUF": {"quantized_model_id": "b"}},
            '"m" needs exactly one model specification, such as Plain or GGUF; found Plain and GGUF.',
        ),
        (
            {"Plain": {"model_id": "a/b", "arch": "llama"}},
            '"m": arch cannot be served: the architecture is read from the checkpoint; leave it out.',
        ),
        (
            {"GGUF": {"quantized_model_id": "a/b", "quantized_filename": "x-1.gguf;x-2.gguf"}},
            '"m": GGUF files in several pieces come with a later version; name one file.',
        ),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_reason(tmp_path: Path, entry: Any, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_json(tmp_path, {"ok": {"Plain": {"model_id": "o/k"}}, "m": entry})
    assert refused.value.message == f"{tmp_path / 'config.json'}: {message}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("[models.device]", "[models.quantization]\nisq = 'fp8'\n[models.device]"),
            ":15: models.0: isq: fp8 is a floating-point format, which has no kernels here; choose int8 or int4.",
        ),
        (
            ('kind = "text"', 'kind = "multimodal"'),
            ':10: models.0: kind = "multimodal" cannot be served: images',
        ),
        (
            ('kind = "text"', 'kind = "txt"'),
            ':10: models.0: kind must be auto, text or embedding, not the string "txt".',
        ),
        (('kind = "text"', 'kinds = "text"'), ':10: models.0: there is no key "kinds"; did you mean "kind"?'),
        (
            ("max_seq_len", "max_seq_length"),
            ':16: device has no key "max_seq_length"; did you mean "max_seq_len"?',
        ),
        (
            ('command = "serve"', 'command = "run"'),
            ':1: command must be "serve"; for a chat in the terminal use `inferloom chat`.',
        ),
        (
            ("disable_access_log = false", "mcp_port = 1"),
            ":8: [server].mcp_port has no counterpart here; leave it out.",
        ),
        (("seed = 7", "log = 'x'"), ":4: [global]: log cannot be served: requests are never logged"),
        (
            ("[global]", "[runtime]\nmax_seqs = 3\n[global]"),
            ":3: [runtime]: runtime cannot be served: its keys have no",
        ),
        (("[global]", "[globul]"), ':3: "globul" is not a section of this file; did you mean "global"?'),
        (('model_id = "Qwen/Qwen3-0.6B"', ""), ":9: models.0: model_id is missing."),
        (("cpu = true", "topology = 't.yml'"), ":15: models.0: topology cannot be served: topologies"),
    ],
)
def test_so_it_is_in_the_newer_toml_with_the_line(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        load_toml(tmp_path, TABLES.replace(*change))
    assert refused.value.message.startswith(f"{tmp_path / 'config.toml'}{message}")


def test_two_entries_of_one_model_could_not_be_told_apart(tmp_path: Path) -> None:
    entries = {name: {"alias": name, "Plain": {"model_id": "a/b"}} for name in ("x", "y")}
    with pytest.raises(ConfigError) as refused:
        load_json(tmp_path, entries)
    assert '"a/b" is the alias or model id of two entries, x and y' in refused.value.message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": \n}', "config.json:2: not valid JSON, column 1: Expecting value."),
        ("[]", "config.json: the file must hold an object whose keys are labels of models."),
        ('{"a": 1, "a": 2}', 'config.json: the key "a" is there twice.'),
        ('{"a": {"alias": "x"}, "b": 3}', 'config.json: "a" needs exactly one model specification'),
    ],
)
def test_a_broken_json_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        load_any(path)
    assert refused.value.message.startswith(str(tmp_path / message))
