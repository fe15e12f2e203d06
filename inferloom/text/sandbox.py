"""Where chat templates run: Jinja's immutable sandbox with the names that `transformers` gives to templates.

Templates come with checkpoints and are untrusted. Nothing of Python is reachable from them (the sandbox), they
cannot ask for much memory or a huge number in one operation (the operators are intercepted), and a render has
limits of time and memory (`limits.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MAX_OPERATION = 1 << 24  # items or bits of what one operator makes
MAX_OUTPUT = 1 << 27  # characters of a rendered chat


class _GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's tokens for training: here, just its content."""

    tags = {"generation"}  # noqa: RUF012 (the base class says so)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _TemplateNamespace(Namespace):
    """A namespace that refuses names with a leading underscore (CPython's internals have such names)."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        # without a named `self`, so that `namespace(self=…)` is possible as in Jinja
        attributes = dict(*args[1:], **kwargs)
        for name in attributes:
            _refuse_private(name)
        Namespace.__init__(args[0], attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot have the attribute {name!r}")


class _DictMaker:
    """`dict(…)` without the type itself."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class Sandbox(ImmutableSandboxedEnvironment):
    """One environment for all templates; it keeps no state of any of them."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_GenerationTag, LoopControlExtension],
            cache_size=0,
        )
        self.filters["tojson"] = _to_json
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        self.globals["dict"] = _DictMaker()
        self.globals["namespace"] = _TemplateNamespace

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            size = _size(left) * right if isinstance(right, int) else _size(right) * left
            if isinstance(left, int) and isinstance(right, int):
                size = left.bit_length() + right.bit_length()
        elif operator == "**":
            both = isinstance(left, int) and isinstance(right, int)
            size = left.bit_length() * right if both else 0
        else:
            size = _longest_number(left) if isinstance(left, str) else 0
        if size > MAX_OPERATION:
            raise SecurityError(f"the result of `{operator}` would be too large")
        return super().call_binop(context, operator, left, right)


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str | bytes | list | tuple) else 0


def _longest_number(text: str) -> int:
    """The largest width or precision that a %-format may ask for."""
    digits, largest = "", 0
    for character in text + " ":
        if character.isdecimal():
            digits += character
        elif digits:
            largest, digits = max(largest, int(digits[:9]) if len(digits) < 10 else MAX_OPERATION + 1), ""
    return largest


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as `json.dumps` writes it: Jinja's own filter would escape for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def render_pieces(template: jinja2.Template, variables: dict[str, Any]) -> Iterator[str]:
    """Render piece by piece, ending with `SecurityError` where the text grows beyond all measure."""
    context = template.new_context(variables)
    room = MAX_OUTPUT
    for piece in template.root_render_func(context):
        room -= len(piece)
        if room < 0:
            raise SecurityError(f"the text is longer than {MAX_OUTPUT >> 20} Mi characters")
        yield piece
