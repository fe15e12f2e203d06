from pathlib import Path

import pytest

from inferloom.config.drivers import dummy_options
from inferloom.config.flags import from_flags, split_model
from inferloom.config.ids import default_name
from inferloom.config.loading import load
from inferloom.errors import ConfigError

EXAMPLES = Path(__file__).parent / "examples"


def test_each_model_is_called_after_its_source() -> None:
    config = from_flags(
        ["smollm2", "Qwen/Qwen3-0.6B@main", "pypi:a==1#b/c/Model.Q4_1.gguf", "o/r#x/M.Q8_0.gguf"]
    )
    assert [model.name for model in config.model] == ["smollm2", "Qwen/Qwen3-0.6B", "Model.Q4_1", "M.Q8_0"]
    assert config.model[1].source == "Qwen/Qwen3-0.6B@main"
    assert config.default_model is config.model[0]


def test_a_path_is_called_after_its_folder_or_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "checkpoint").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert default_name("org/checkpoint") == "checkpoint"  # it exists, so it is not a hub repository
    assert default_name("org/other") == "org/other"
    assert default_name("./nothing/here.gguf") == "here"
    assert default_name("/a/b/") == "b"
    assert default_name("~/models/x") == "x"
    assert default_name(".") == tmp_path.name


def test_flags_apply_to_every_model() -> None:
    config = from_flags(
        ["a/b", "c/d"],
        lazy_loading=True,
        max_model_len=1024,
        max_batch_size=4,
        gpu_memory_utilization=0.5,
        dtype="half",
    )
    for model in config.model:
        assert (model.lazy, model.max_model_len, model.dtype) == (True, 1024, "float16")
        assert model.driver.options == {"max_batch_size": 4, "gpu_mem_utilization": 0.5}


def test_flags_of_the_server() -> None:
    server = from_flags(
        ["a/b", "c/d"],
        host="0.0.0.0",
        port=0,
        default_model_id="c/d",
        max_concurrent_requests=100,
        log_level="debug",
        insecure=True,
    ).server
    assert (server.host, server.port, server.default_model) == ("0.0.0.0", 0, "c/d")
    assert (server.max_concurrent_requests, server.log_level, server.insecure) == (100, "debug", True)


def test_what_stands_behind_a_comma_is_for_this_model() -> None:
    (model,) = from_flags(
        [
            "a/b,name=x,aliases=y,z,lazy=false,max_model_len=64,threads=2,device=cuda:0,cuda:1,"
            "driver.random_seed=7,batch_policy=eager,system_prompt=Be kind, be short."
        ],
        lazy_loading=True,
        max_model_len=1024,
    ).model
    assert (model.name, model.aliases, model.lazy, model.max_model_len) == ("x", ["y", "z"], False, 64)
    assert (model.driver.device, model.driver.random_seed) == (["cuda:0", "cuda:1"], 7)
    assert model.driver.options == {"threads": 2}
    assert model.scheduler.batch_policy == "eager"
    assert model.system_prompt == "Be kind, be short."


def test_a_dummy_takes_its_own_options_and_needs_a_name_only() -> None:
    (model,) = from_flags([",driver=dummy,name=d,text=Hello, world,tokens_per_second=5"]).model
    assert (model.name, model.weights, model.driver.type) == ("d", None, "dummy")
    options = dummy_options(model.driver)
    assert (options.text, options.tokens_per_second) == ("Hello, world", 5.0)


def test_flags_go_before_the_file_and_add_to_its_models() -> None:
    base = load(EXAMPLES / "pie.toml")
    config = from_flags(["a/b"], base=base, port=9000, max_batch_size=8)
    assert config.server.port == 9000
    assert config.server.effective_log_level == "debug"  # the file is verbose
    assert from_flags([], base=base, log_level="info").server.effective_log_level == "info"
    assert [model.name for model in config.model] == ["default", "a/b"]
    assert config.model[0].driver.options["max_batch_size"] == 8
    assert config.model[0].driver.options["max_batch_tokens"] == 10240
    assert from_flags([], base=base) == base


@pytest.mark.parametrize(
    ("written", "taken_apart"),
    [
        ("a", ("a", [])),
        ("a,b/c.gguf,name=x", ("a,b/c.gguf", [("name", "x")])),
        ("pypi:a==1#b,name=x=y", ("pypi:a==1#b", [("name", "x=y")])),
        (",name=d", ("", [("name", "d")])),
        ("a, name = b", ("a", [("name", " b")])),
    ],
)
def test_a_model_flag_is_taken_apart(written: str, taken_apart: tuple[str, list[tuple[str, str]]]) -> None:
    assert split_model(written) == taken_apart


@pytest.mark.parametrize(
    ("models", "flags", "message"),
    [
        (["a,nmae=x"], {}, '-m "a,nmae=x": there is no key "nmae"; did you mean "name"?'),
        (["a,text=x"], {}, '-m "a,text=x": there is no key "text"'),
        ([",name="], {}, "command line: model.0.name must not be empty."),
        ([",driver=dummy"], {}, '-m ",driver=dummy": a model without a source needs a name: write `name=x`.'),
        (["a,lazy=maybe"], {}, 'command line: model.0.lazy must be true or false, not the string "maybe".'),
        (["a,driver=vllm"], {}, 'command line: model.0.driver.type = "vllm" cannot be served: vLLM'),
        (["a", "a"], {}, 'command line: model.1.name: "a" is already the name of the model "a"'),
        (["my model"], {}, 'command line: model.0.name: "my model" cannot be an id'),
        (["a"], {"log_level": "loud"}, "command line: server.log_level must be one of"),
        (["a"], {"port": 70000}, "command line: server.port must be between 0 and 65535, not 70000."),
        (
            ["a"],
            {"gpu_memory_utilization": 1.5},
            "options.gpu_mem_utilization must be in (0.0, 1.0], not 1.5.",
        ),
        (
            ["a"],
            {"default_model_id": "b"},
            'server.default_model = "b" is not the name or an alias of a model',
        ),
        (
            ["a"],
            {"quantization": "int5"},
            "model.0.quantization: there is no quantization 'int5'; did you mean \"int8\"?",
        ),
        (["a"], {"adapter": "x"}, "--adapter x: LoRA adapters come with a later version."),
        (["a"], {"adapter_type": "lora"}, "--adapter-type lora: LoRA adapters come with a later version."),
        (["a"], {"no_snapshot": True}, "--no-snapshot: inferlets come with a later version."),
        (
            ["a"],
            {"no_auth": True},
            "--no-auth: the WebSocket it is about comes with a later version; HTTP clients are let in by "
            "`[server] api_keys`.",
        ),
        (
            ["a"],
            {"model_class": "X"},
            "--model-class X: model classes of your own come with a later version.",
        ),
        (
            ["a"],
            {"model_type": "onnx"},
            "--model-type onnx: safetensors and GGUF are recognised without it; ONNX",
        ),
        (
            ["a"],
            {"tensor_parallel_size": 4},
            "--tensor-parallel-size 4: tensor parallelism comes with a later",
        ),
        (["a"], {"pipeline_parallel_size": 2}, "--pipeline-parallel-size 2: pipeline parallelism comes with"),
        ([], {}, "command line: there is no [[model]]"),
    ],
)
def test_a_wrong_flag_is_refused(models: list[str], flags: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        from_flags(models, **flags)  # type: ignore[arg-type]
    assert message in refused.value.message


def test_sizes_of_one_are_what_there_is() -> None:
    assert from_flags(["a"], tensor_parallel_size=1, pipeline_parallel_size=1).model[0].name == "a"


def test_without_a_name_the_id_is_that_of_the_sources_room() -> None:
    from inferloom.sources.reference import parse

    for source in (
        "smollm2",
        "minilm",
        "qwen3-0.6b",
        "Qwen/Qwen3-0.6B@v1",
        "o/r#f/M.gguf",
        "pypi:a==1#b/M.gguf",
    ):
        assert default_name(source) == parse(source).name
