import subprocess
import sys
from pathlib import Path

import pytest

from inferloom.config.loading import load, loads
from inferloom.config.schema import Config, DriverConfig, ModelConfig
from inferloom.errors import ConfigError

EXAMPLES = Path(__file__).parent / "examples"


def test_the_documentations_example_file_loads_as_it_stands() -> None:
    config = load(EXAMPLES / "pie.toml")
    assert config.server.effective_log_level == "debug"
    assert config.server.registry == "https://registry.pie-project.org/"
    assert config.runtime.worker_threads == 8
    (model,) = config.model
    assert (model.name, model.weights) == ("default", "Qwen/Qwen3-0.6B")
    assert model.scheduler.request_timeout_secs == 120
    assert (model.driver.type, model.driver.device) == ("native", ["cuda:0"])
    assert model.driver.options["max_batch_tokens"] == 10240


def test_a_single_device_becomes_a_list_and_both_older_driver_names_mean_native() -> None:
    config = loads(
        """
        [[model]]
        name = "a"
        source = "smollm2"
        dtype = "half"
        [model.driver]
        type = "portable"
        device = "cpu"
        activation_dtype = "fp32"
        """,
        origin="t",
    )
    driver = config.model[0].driver
    assert (driver.type, driver.device, driver.activation_dtype) == ("native", ["cpu"], "float32")
    assert config.model[0].dtype == "float16"


def test_defaults_are_those_of_the_documentation() -> None:
    config = loads('[[model]]\nname = "a"\nsource = "b"\n[model.driver]\ntype = "native"\n', origin="t")
    expected = Config(model=[ModelConfig(name="a", source="b", driver=DriverConfig(type="native"))])
    assert config == expected
    assert (config.server.host, config.server.port, config.server.verbose) == ("127.0.0.1", 8080, False)
    assert config.server.registry == "~/.inferloom/registry"
    assert config.auth.enabled is True
    assert (config.telemetry.enabled, config.telemetry.service_name) == (False, "inferloom")
    assert config.runtime.fs_scratch_dir.endswith("/inferloom")
    assert config.model[0].scheduler.batch_policy == "adaptive"
    assert (config.model[0].driver.activation_dtype, config.model[0].driver.random_seed) == ("bfloat16", 42)


def test_two_models_on_a_card_each_and_any_number_on_the_cpu() -> None:
    blocks = [
        f'[[model]]\nname = "m{n}"\nsource = "x/y"\n[model.driver]\ntype = "native"\ndevice = "{device}"\n'
        for n, device in enumerate(["cuda:0", "cuda:1", "cpu", "cpu"])
    ]
    assert len(loads("".join(blocks), origin="t").model) == 4


def test_a_dummy_needs_no_source_and_may_have_one() -> None:
    dummy = (
        '[[model]]\nname = "{}"\n{}\n[model.driver]\ntype = "dummy"\n[model.driver.options]\ntext = "hi"\n'
    )
    config = loads(dummy.format("a", "") + dummy.format("b", 'source = "smollm2"'), origin="t")
    assert [model.weights for model in config.model] == [None, "smollm2"]


def test_the_default_model_is_the_first_or_the_one_named_by_id_or_alias() -> None:
    blocks = [
        f'[[model]]\nname = "{name}"\nsource = "{name}/w"\naliases = ["{name}-alias"]\n[model.driver]\ntype = "native"\n'
        for name in "ab"
    ]
    for head, expected in [
        ("", "a"),
        ('server.default_model = "b"\n', "b"),
        ('server.default_model = "b-alias"\n', "b"),
        ('server.default_model = "b/w"\n', "b"),
    ]:
        default = loads(head + "".join(blocks), origin="t").default_model
        assert default is not None and default.name == expected


def test_a_model_called_default_may_be_the_default() -> None:
    text = """
    server.default_model = "default"
    [[model]]
    name = "a"
    source = "x"
    driver = { type = "native" }
    [[model]]
    name = "default"
    source = "y"
    driver = { type = "native" }
    """
    assert loads(text, origin="t").default_model is not None


def test_checking_probes_no_hardware() -> None:
    text = '[[model]]\nname = "a"\nsource = "x/y"\n[model.driver]\ntype = "native"\ndevice = ["cuda:6", "cuda:7"]\n'
    assert loads(text, origin="t").model[0].driver.device == ["cuda:6", "cuda:7"]


def test_a_missing_file_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file; `inferloom config init` writes one"):
        load(tmp_path / "none.toml")


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_bytes(b"a = \xff")
    with pytest.raises(ConfigError, match=r"not UTF-8 text \(byte 4\)"):
        load(path)
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[server]\nport = \n", "f.toml:2: not valid TOML, column 8: Invalid value."),
        ("[server\n", "f.toml:1: not valid TOML, column 8: Expected ']' at the end of a table declaration."),
        ('a = "', "f.toml:1: not valid TOML, at the end of the file: Unterminated string."),
        ("[server]\nport = 1\nport = 2\n", "f.toml:3: not valid TOML, column 9: Cannot overwrite a value."),
    ],
)
def test_invalid_toml_is_refused_with_line_and_column(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        loads(text, origin="f.toml")
    assert refused.value.message == message


def test_every_problem_is_told_at_once_in_the_order_of_the_file() -> None:
    with pytest.raises(ConfigError) as refused:
        loads('[server]\nport = "80"\n[runtime]\nworker_thread = 2\n[auth]\nenabled = 1\n', origin="f.toml")
    assert refused.value.message.splitlines() == [
        'f.toml:2: server.port must be an integer, not the string "80".',
        'f.toml:4: "worker_thread" is not a key of [runtime]; did you mean "worker_threads"?',
        "f.toml:6: auth.enabled must be true or false, not 1.",
    ]


def test_loading_imports_neither_the_cli_nor_torch() -> None:
    code = (
        "import sys, inferloom.config.loading, inferloom.config.flags, inferloom.config.forms\n"
        "print([name for name in ('typer', 'click', 'rich', 'tomlkit', 'numpy', 'torch', 'asyncio') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
