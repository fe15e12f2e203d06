"""What of a changed configuration holds at once, what reloads a model and what takes a restart."""

from __future__ import annotations

import msgspec
import pytest

from inferloom.catalog.entry import residence_key
from inferloom.config.changing import OF_THE_NAME
from inferloom.config.difference import AT_ONCE, KeyChange, differences
from inferloom.config.loading import loads
from inferloom.config.schema import Config, ModelConfig

BASE = """
[server]
port = 8080
[[model]]
name = "a"
source = "x/a"
[model.driver]
type = "native"
[[model]]
name = "b"
source = "x/b"
[model.driver]
type = "native"
"""


def read(text: str) -> Config:
    return loads(text, origin="file")


def found(old: str, new: str, *, base: str = BASE) -> list[tuple[str, object, object, str]]:
    changed = base.replace(old, new)
    assert changed != base
    return [(one.key, one.before, one.after, one.effect) for one in differences(read(base), read(changed))]


def test_what_is_the_same_is_no_difference():
    assert differences(read(BASE), read(BASE + "\n# a comment\n")) == []


@pytest.mark.parametrize(
    "old, new, expected",
    [
        ("port = 8080", "port = 9090", ("server.port", 8080, 9090, "restart")),
        ("port = 8080", "keep_alive = '5m'", ("server.keep_alive", -1, "5m", "now")),
        ("port = 8080", "log_level = 'debug'", ("server.log_level", "info", "debug", "now")),
        ("port = 8080", "max_loaded = 2", ("server.max_loaded", None, 2, "now")),
        ("port = 8080", "default_model = 'b'", ("server.default_model", "a", "b", "now")),
        ("[server]", "[telemetry]\nenabled = true\n[server]", ("telemetry.enabled", False, True, "restart")),
        (
            "[server]",
            "[runtime]\nmemory_budget = '1GiB'\n[server]",
            ("runtime.memory_budget", "80%", "1GiB", "now"),
        ),
        ('source = "x/b"', 'source = "x/c"', ("model.b.source", "x/b", "x/c", "reload")),
        ('source = "x/b"', 'source = "x/b"\npin = true', ("model.b.pin", False, True, "now")),
        (
            'source = "x/b"',
            'source = "x/b"\nsystem_prompt = "Hi"',
            ("model.b.system_prompt", None, "Hi", "now"),
        ),
        (
            'source = "x/b"',
            'source = "x/b"\nmax_model_len = 9',
            ("model.b.max_model_len", None, 9, "reload"),
        ),
    ],
)
def test_each_key_says_what_it_takes(old, new, expected):
    assert expected in found(old, new)
    assert all(key in (expected[0], "server.port") for key, *_ in found(old, new))


def test_options_of_a_driver_are_told_one_by_one():
    changed = BASE + "[model.driver.options]\nthreads = 1\nmax_batch_size = 4\n"
    assert differences(read(BASE), read(changed)) == [
        KeyChange(key="model.b.driver.options.threads", model="b", after=1, effect="reload"),
        KeyChange(key="model.b.driver.options.max_batch_size", model="b", after=4, effect="reload"),
    ]


def test_models_come_and_go_whole():
    assert found('name = "b"', 'name = "c"') == [
        ("model.c", None, "x/b", "added"),
        ("model.b", "x/b", None, "removed"),
    ]


def test_another_order_of_models_is_another_default_model_and_nothing_else():
    old, new = read(BASE), read(BASE)
    new.model.reverse()
    assert [(one.key, one.after) for one in differences(old, new)] == [("server.default_model", "b")]


def test_keys_of_the_api_are_never_shown():
    changed = BASE.replace("port = 8080", 'api_keys = ["a-secret", "another"]')
    (keys,) = differences(read(BASE), read(changed))
    assert (keys.key, keys.before, keys.effect) == ("server.api_keys", None, "now")
    assert "secret" not in repr(keys)


def test_what_is_at_once_of_a_model_is_what_does_not_tell_workers_apart():
    (model, _) = read(BASE).model
    other = {
        "name": "z",
        "aliases": ["z"],
        "system_prompt": "z",
        "keep_alive": 1,
        "pin": True,
        "priority": 1,
        "group": "z",
        "lazy": True,
        "max_model_len": 1,
        "dtype": "float32",
        "quantization": "int8",
    }
    for key, value in other.items():
        changed = msgspec.structs.replace(model, **{key: value})
        assert (residence_key(changed) == residence_key(model)) == (key in OF_THE_NAME), key
    assert set(ModelConfig.__struct_fields__) >= OF_THE_NAME


def test_the_keys_that_hold_at_once_are_keys():
    for section, keys in AT_ONCE.items():
        assert keys <= set(getattr(Config(), section).__struct_fields__)
