import tomllib
from typing import Any

import pytest
import tomlkit
from hypothesis import given
from hypothesis import strategies as st

from inferloom.config.lines import key_lines, line_of

DOCUMENT = '''\
# a comment with [brackets] and = signs
title = "x"  # line 2
text = """
[not.a.table]
key = 1
\\""" still inside
"""
raw = \'\'\'
[nor.this]\'\'\'

[server]
port = 8080
"quoted key" = [
  1,  # one
  "]",
]
a.b = { c = 1, d = { e = [1] } }

[[model]]
name = "first"
[model.driver]
device = ["cuda:0",
          "cuda:1"]
[[model]]
name = 'second'
[model.driver.options]
x = 1979-05-27T07:32:00Z
'''


def test_every_kind_of_key_has_its_line() -> None:
    tomllib.loads(DOCUMENT)
    lines = key_lines(DOCUMENT)
    assert lines == {
        ("title",): 2,
        ("text",): 3,
        ("raw",): 8,
        ("server",): 11,
        ("server", "port"): 12,
        ("server", "quoted key"): 13,
        ("server", "quoted key", 0): 14,
        ("server", "quoted key", 1): 15,
        ("server", "a"): 17,
        ("server", "a", "b"): 17,
        ("server", "a", "b", "c"): 17,
        ("server", "a", "b", "d"): 17,
        ("server", "a", "b", "d", "e"): 17,
        ("server", "a", "b", "d", "e", 0): 17,
        ("model",): 19,
        ("model", 0): 19,
        ("model", 0, "name"): 20,
        ("model", 0, "driver"): 21,
        ("model", 0, "driver", "device"): 22,
        ("model", 0, "driver", "device", 0): 22,
        ("model", 0, "driver", "device", 1): 23,
        ("model", 1): 24,
        ("model", 1, "name"): 25,
        ("model", 1, "driver"): 26,
        ("model", 1, "driver", "options"): 26,
        ("model", 1, "driver", "options", "x"): 27,
    }


def test_a_missing_key_has_the_line_of_what_is_around_it() -> None:
    lines = key_lines(DOCUMENT)
    assert line_of(lines, ("model", 1, "driver", "type")) == 26
    assert line_of(lines, ("model", 1, "source")) == 24
    assert line_of(lines, ("telemetry", "enabled")) is None


@pytest.mark.parametrize(
    "text", ["", "\n\n# only a comment", "a = 1", "\r\na = 1\r\n[b]\r\n", "[a]\n[a.b]\n"]
)
def test_small_documents_are_walked(text: str) -> None:
    tomllib.loads(text)
    key_lines(text)


scalars = st.one_of(
    st.booleans(),
    st.integers(-(2**40), 2**40),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(codec="utf-8", exclude_characters="\x7f")),
    st.dates(),
    st.datetimes(),
)
keys = st.text(st.characters(codec="utf-8", exclude_characters="\x7f"), max_size=6)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)


def paths(value: Any, at: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    found: set[tuple[str | int, ...]] = set()
    entries = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, inner in entries:
        found |= {(*at, key)} | paths(inner, (*at, key))
    return found


@given(st.dictionaries(keys, values, max_size=4))
def test_of_any_document_exactly_the_keys_are_found(document: dict[str, Any]) -> None:
    text = tomlkit.dumps(document)
    assert set(key_lines(text)) == paths(tomllib.loads(text))
