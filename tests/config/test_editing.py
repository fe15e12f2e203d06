import threading
from pathlib import Path
from typing import Any

import pytest
from factories.configs import server, text
from hypothesis import given, settings
from hypothesis import strategies as st

from inferloom.config.editing import get, init, redacted, set_value, unset, with_value
from inferloom.config.loading import load, loads
from inferloom.config.template import template
from inferloom.errors import ConfigError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "home" / "config.toml"
    init(path)
    return path


def test_init_makes_the_folder_and_does_not_write_over_a_file(file: Path) -> None:
    file.write_text("mine")
    with pytest.raises(ConfigError, match="the file exists; --force writes a new one over it"):
        init(file)
    assert file.read_text() == "mine"
    init(file, force=True)
    assert file.read_text() == template()


@pytest.mark.parametrize(
    ("key", "written", "value"),
    [
        ("server.port", "9090", 9090),
        ("auth.enabled", "true", True),
        ("server.drain_timeout_secs", "2", 2.0),
        ("server.host", "0.0.0.0", "0.0.0.0"),
        ("server.api_keys", "a,b", ["a", "b"]),
        ("server.cors_origins", "", []),
        ("server.max_concurrent_requests", "64", 64),
        ("model.0.hf_repo", "meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B"),
        ("model.0.driver.device", "cuda:0,cuda:1", ["cuda:0", "cuda:1"]),
        ("model.1.driver.device", "cuda:3", ["cuda:3"]),
        ("model.1.driver.options.threads", "2", 2),
        ("model.1.scheduler.batch_policy", "greedy", "greedy"),
        ("model.0.system_prompt", "Be kind, be short.", "Be kind, be short."),
        ("model.0.name", "8080", "8080"),
    ],
)
def test_what_is_set_is_what_is_read(file: Path, key: str, written: str, value: Any) -> None:
    assert set_value(file, key, written) == value
    assert get(file, key) == value


def test_comments_and_order_stay(file: Path) -> None:
    before = file.read_text().replace("port = 8080", "port = 8080  # ours")
    file.write_text(before)
    set_value(file, "server.port", "9090")
    assert file.read_text() == before.replace("port = 8080", "port = 9090")


def test_setting_hf_repo_takes_the_source_out_and_the_reverse(file: Path) -> None:
    set_value(file, "model.0.hf_repo", "Qwen/Qwen3-0.6B")
    assert (load(file).model[0].source, load(file).model[0].hf_repo) == (None, "Qwen/Qwen3-0.6B")
    set_value(file, "model.0.source", "smollm2")
    assert (load(file).model[0].source, load(file).model[0].hf_repo) == ("smollm2", None)


@pytest.mark.parametrize(
    ("key", "written", "message"),
    [
        ("server.prot", "1", '"prot" is not a key of [server]; did you mean "port"?'),
        ("port", "1", '"port" is a key of [server]: write server.port.'),
        ("serve.port", "1", '[serve] is not a section; did you mean "server"?'),
        ("server", "1", "server is a table; name a key of it: host, port, "),
        ("server.port.x", "1", "server.port.x: server.port is a value; nothing is below it."),
        (
            "server..port",
            "1",
            '"server..port" is not a path of a key; write it like server.port or model.0.source.',
        ),
        ("model.name", "x", "say which model by its number, counted from 0: model.0.name."),
        ("model.2.name", "x", "there is no model.2: there are 2 models, counted from 0."),
        ("model.0.driver", "x", "model.0.driver is a table; name a key of it: type, device, "),
        (
            "model.0.driver.options",
            "x",
            "model.0.driver.options is a table; name a key of it: gpu_mem_utilization, ",
        ),
        (
            "model.0.driver.options.thread",
            "1",
            '"thread" is not a key of [model.driver.options]; did you mean "threads"?',
        ),
        ("server.port", "eighty", 'server.port must be an integer, not the string "eighty".'),
        ("server.port", "70000", "server.port must be between 0 and 65535, not 70000."),
        ("auth.enabled", "yes", 'auth.enabled must be true or false, not the string "yes".'),
        (
            "telemetry.endpoint",
            "collector:4317",
            'telemetry.endpoint = "collector:4317" must be http://host:port',
        ),
        ("model.1.name", "smollm2", 'model.1.name: "smollm2" is already the name of the model "smollm2"'),
        ("model.0.scheduler.request_timeout_secs", "nan", "must be a finite number > 0, not nan."),
        (
            "server.api_keys.0",
            "k",
            "server.api_keys.0: the list has no element 0; set the whole list, with commas.",
        ),
        (
            "server.default_model",
            "nobody",
            'server.default_model = "nobody" is not the name or an alias of a model',
        ),
    ],
)
def test_a_wrong_change_is_refused_and_the_file_untouched(
    file: Path, key: str, written: str, message: str
) -> None:
    before = file.read_text()
    with pytest.raises(ConfigError) as refused:
        set_value(file, key, written)
    assert message in refused.value.message
    assert file.read_text() == before
    assert sorted(entry.name for entry in file.parent.iterdir()) == ["config.toml", "config.toml.lock"]


def test_an_unset_key_has_its_default_again(file: Path) -> None:
    set_value(file, "server.max_concurrent_requests", "64")
    unset(file, "server.max_concurrent_requests")
    assert get(file, "server.max_concurrent_requests") is None
    with pytest.raises(
        ConfigError, match=r"server.max_concurrent_requests is not set in .*; its default holds already"
    ):
        unset(file, "server.max_concurrent_requests")
    before = file.read_text()
    with pytest.raises(ConfigError, match="needs the key"):
        unset(file, "model.0.name")
    assert file.read_text() == before


def test_get_gives_defaults_lists_and_tables(file: Path) -> None:
    file.write_text('[[model]]\nname = "a"\nsource = "b"\ndriver.type = "native"\n')
    assert get(file, "server.port") == 8080
    assert get(file, "model.0.driver.options.max_batch_size") == 512
    assert get(file, "model.0.driver.device") == ["cpu"]
    assert get(file, "auth") == {"enabled": True}
    with pytest.raises(ConfigError, match='"prot" is not a key'):
        get(file, "server.prot")


@pytest.mark.parametrize(
    "form",
    [
        '[[model]]\nname = "a"\nsource = "b"\ndriver.type = "native"\n',
        '[[model]]\nname = "a"\nsource = "b"\ndriver = { type = "native" }\n',
        'model = [{ name = "a", source = "b", driver = { type = "native" } }]\n',
        'server.host = "127.0.0.1"\n[[model]]\nname = "a"\nsource = "b"\n[model.driver]\ntype = "native"',
        '[server]\n\n[[model]]\nname = "a"\nsource = "b"\n[model.driver]\ntype = "native"\n[model.driver.options]\n',
    ],
)
@pytest.mark.parametrize(
    ("key", "written"),
    [
        ("server.port", "9"),
        ("model.0.driver.device", "cuda:1"),
        ("model.0.driver.options.threads", "3"),
        ("model.0.scheduler.batch_policy", "eager"),
        ("model.0.lazy", "true"),
    ],
)
def test_whatever_way_the_file_is_written(tmp_path: Path, form: str, key: str, written: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(form)
    value = set_value(path, key, written)
    assert get(path, key) == value


def test_models_far_apart_in_the_file_can_be_set(tmp_path: Path) -> None:
    block = '[[model]]\nname = "{0}"\nsource = "{0}"\n[model.driver]\ntype = "native"\n'
    path = tmp_path / "c.toml"
    path.write_text(block.format("a") + "[server]\nport = 1\n" + block.format("b"))
    try:
        set_value(path, "model.1.lazy", "true")
    except ConfigError as refused:  # tomlkit may not be able to write such a file; it is then left alone
        assert "change it with an editor" in refused.message
        assert load(path).model[1].lazy is False
    else:
        assert [model.lazy for model in load(path).model] == [False, True]


@given(server.filter(bool), st.data())
@settings(max_examples=50)
def test_setting_any_server_key_reads_back(chosen: dict[str, Any], data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(chosen)))
    changed = loads(with_value(template(), ("server", key), chosen[key]), origin="t")
    assert getattr(changed.server, key) == chosen[key]
    assert changed.model == loads(template(), origin="t").model


@given(text)
def test_any_system_prompt_can_be_set(prompt: str) -> None:
    changed = loads(with_value(template(), ("model", 0, "system_prompt"), prompt), origin="t")
    assert changed.model[0].system_prompt == prompt


def test_changes_from_several_processes_at_once_all_land(file: Path) -> None:
    keys = [
        "port",
        "queue_timeout_secs",
        "load_timeout_secs",
        "first_token_timeout_secs",
        "drain_timeout_secs",
    ]
    threads = [threading.Thread(target=set_value, args=(file, f"server.{key}", "77")) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [get(file, f"server.{key}") for key in keys] == [77] * len(keys)


def test_api_keys_are_redacted_wherever_they_stand() -> None:
    shown = redacted(
        '[server]  # top\n# api_keys = ["sk-old"]\napi_keys = [\n  "sk-a", # first\n  "sk-b",\n]\nport = 1\n'
    )
    assert "sk-" not in shown
    assert shown.count("<redacted>") == 3
    assert "sk-" not in redacted('server = { api_keys = ["sk-a"] }\n')
    assert "sk-" not in redacted('server.api_keys = ["sk-a"]\n')
    assert redacted("[server]\nport = 1\n") == "[server]\nport = 1\n"
