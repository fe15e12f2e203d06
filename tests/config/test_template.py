import re
import tomllib

import pytest

from inferloom.config.drivers import NativeOptions
from inferloom.config.loading import loads
from inferloom.config.schema import (
    AuthConfig,
    DriverConfig,
    ModelConfig,
    RuntimeConfig,
    SchedulerConfig,
    ServerConfig,
    TelemetryConfig,
)
from inferloom.config.template import template

SECTIONS = {
    "server": ServerConfig,
    "auth": AuthConfig,
    "telemetry": TelemetryConfig,
    "runtime": RuntimeConfig,
    "model": ModelConfig,
    "model.scheduler": SchedulerConfig,
    "model.driver": DriverConfig,
    "model.driver.options": NativeOptions,
}


def test_the_template_serves_the_two_starter_models_on_the_cpu_under_their_own_names() -> None:
    config = loads(template(), origin="template")
    chat, embeddings = config.model
    assert (chat.name, chat.source, embeddings.name, embeddings.source) == (
        "smollm2",
        "smollm2",
        "minilm",
        "minilm",
    )
    assert chat.system_prompt == "You are a concise assistant. Answer in one short sentence."
    assert config.default_model is chat
    assert [model.driver.device for model in config.model] == [["cpu"], ["cpu"]]
    assert (embeddings.dtype, embeddings.driver.activation_dtype) == ("float32", "float32")


def test_the_template_turns_off_the_websockets_authentication() -> None:
    assert loads(template(), origin="template").auth.enabled is False


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_of_the_schema_is_there_with_a_line_that_says_what_it_means(section: str) -> None:
    text = template()
    header = "[[model]]" if section == "model" else f"[{section}]"
    block = text[text.index(f"\n{header}\n") :].partition("\n\n")[0]
    for key in SECTIONS[section].__struct_fields__:
        if key not in ("driver", "scheduler", "options"):
            assert re.search(rf"^# .+\n(# )?{key} = ", block, re.MULTILINE), key


def test_what_stands_behind_a_sign_is_toml_and_known() -> None:
    for line in re.findall(r"^# ([a-z_]+ = .*)$", template(), re.MULTILINE):
        (key,) = tomllib.loads(line)
        assert any(key in struct.__struct_fields__ for struct in SECTIONS.values())


def test_the_starters_system_prompt_is_the_one_of_the_table_of_short_names() -> None:
    from inferloom.sources.table import SHORT_NAMES

    chat, embeddings = loads(template(), origin="template").model
    assert chat.system_prompt == SHORT_NAMES["smollm2"].system_prompt
    assert embeddings.dtype == SHORT_NAMES["minilm"].dtype
