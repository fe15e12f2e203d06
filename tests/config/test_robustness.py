"""Whatever is written in a file, the answer is a configuration or one error in words."""

import json
from pathlib import Path
from typing import Any

import pytest
import tomlkit
from hypothesis import given, settings
from hypothesis import strategies as st

from inferloom.config.decoding import fields_of
from inferloom.config.drivers import NativeOptions
from inferloom.config.flags import from_flags
from inferloom.config.forms import load_any
from inferloom.config.loading import loads
from inferloom.config.migration import migrate
from inferloom.config.schema import DriverConfig, ModelConfig, SchedulerConfig, ServerConfig
from inferloom.errors import ConfigError

scalars = st.one_of(
    st.booleans(),
    st.integers(-3, 10),
    st.floats(width=32),
    st.sampled_from(
        ["", "native", "dummy", "cpu", "cuda:0", "a", "b", "a b", "load", "default", "auto", "float32"]
    ),
    st.dates(),
)
junk = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abxyz"), inner, max_size=2),
    max_leaves=4,
)
old = [
    "default_token_budget",
    "default_endowment_pages",
    "oversubscription_factor",
    "policy",
    "primary_model",
]


def table(*keys: str, **inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from([*keys, "junk"]), junk, max_size=5).flatmap(
        lambda drawn: st.fixed_dictionaries({}, optional=dict(inner)).map(lambda more: {**drawn, **more})
    )


options = table(*fields_of(NativeOptions))
driver = table(
    *fields_of(DriverConfig), options=options | junk, portable=options | junk, dummy=options | junk
)
scheduler = table(*fields_of(SchedulerConfig), "policy")
model = table(*fields_of(ModelConfig), *old, driver=driver | junk, scheduler=scheduler | junk)
file = st.fixed_dictionaries(
    {},
    optional={
        "server": table(*fields_of(ServerConfig), *old) | junk,
        "runtime": junk,
        "model": st.lists(model, max_size=3)
        | st.dictionaries(st.sampled_from("abc"), model, max_size=2)
        | model
        | junk,
        "junk": junk,
    },
)
words = [
    "model_id",
    "alias",
    "Plain",
    "GGUF",
    "quantized_model_id",
    "quantized_filename",
    "dtype",
    "in_situ_quant",
]
entry = st.recursive(
    junk, lambda inner: st.dictionaries(st.sampled_from(words), inner, max_size=3), max_leaves=6
)
foreign = st.dictionaries(
    st.sampled_from(["x", "y", "models", "server", "global", "default_model_id", "command"]),
    st.lists(entry, max_size=2) | entry,
    max_size=3,
)


@given(file)
@settings(max_examples=60)
def test_of_a_file_of_ours(values: dict[str, Any]) -> None:
    text = tomlkit.dumps(values)
    try:
        loads(text, origin="f")
    except ConfigError as error:
        assert error.message.startswith("f:")
    try:
        migrated = migrate(text, origin="f")
    except ConfigError:
        return
    try:
        loads(migrated, origin="f")
    except ConfigError as error:
        assert "older configuration schema" not in error.message


@given(foreign)
@settings(max_examples=60)
def test_of_a_file_of_mistral_rs(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.json"
    path.write_text(json.dumps(values, default=str))
    try:
        load_any(path)
    except ConfigError as error:
        assert error.message.startswith(str(path))


@given(st.text(max_size=60))
def test_of_any_text(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path: Path = tmp_path_factory.getbasetemp() / "fuzz.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    for name in (path, path.with_suffix(".json")):
        path.replace(name) if path.exists() else None
        with pytest.raises(ConfigError):
            load_any(name)


@given(st.lists(st.text(st.sampled_from("ab=,./~:#@ \x00é"), max_size=12), max_size=2))
def test_of_any_model_flag(models: list[str]) -> None:
    try:
        from_flags(models)
    except ConfigError as error:
        assert error.message
