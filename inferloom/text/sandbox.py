"""Where chat templates run: Jinja's immutable sandbox with the names that `transformers` gives to templates.

Templates come with checkpoints and are untrusted. Nothing of Python is reachable from them (the sandbox), they
cannot ask for much memory or a huge number in one operation (the operators are intercepted), and a render has
limits of time and memory (`limits.py`).
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator
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
_DIGITS = re.compile("[0-9]+")
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
            optimized=False,  # the optimizer would run filters on constants while it compiles
        )
        self.filters["tojson"] = _to_json
        for name in ("center", "indent", "tojson", "replace", "join", "format"):
            self.filters[name] = _guarded_filter(name, self.filters[name])
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
        _allow(size, operator)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            _check_text_operation(__obj.__name__, owner, args, kwargs)
        return super().call(__context, __obj, *args, **kwargs)


def _guarded_filter(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, refusing to make something huge; `functools.wraps` keeps what Jinja notes on filters."""
    first = 1 if hasattr(work, "jinja_pass_arg") else 0  # the value comes after the environment or context

    @functools.wraps(work)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        value = args[first]
        if name == "join":  # of the list `value` with a separator
            separator = args[first + 1] if len(args) > first + 1 else kwargs.get("d", "")
            if isinstance(value, list | tuple) and isinstance(separator, str):
                _check_text_operation("join", separator, (value,), {})
        else:
            _check_text_operation(name, value if isinstance(value, str) else "", args[first + 1 :], kwargs)
        return work(*args, **kwargs)

    return guarded


def _check_text_operation(name: str, text: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse a method or filter of a text whose result would be out of all proportion."""
    if name == "join" and args and isinstance(args[0], list | tuple):
        size = len(text) * len(args[0]) + sum(map(_size, args[0]))
    elif name == "replace":
        size = (len(text) + 1) * max(map(_size, (*args, *kwargs.values())), default=0) >> 4
    elif name in ("format", "format_map"):
        size = _longest_number(text)
    else:  # widths: ljust, rjust, center, zfill, expandtabs, indent
        numbers = [value for value in (*args, *kwargs.values()) if isinstance(value, int)]
        size = max(numbers, default=0) * (1 + text.count("\t") if name == "expandtabs" else 1)
        if name in ("indent", "tojson"):
            size *= 1000  # once a line
    _allow(size, name)


def _allow(size: int, operation: str) -> None:
    if size > MAX_OPERATION:
        raise SecurityError(f"the result of {operation!r} would be too large")


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str | bytes | list | tuple) else 0


def _longest_number(text: str) -> int:
    """The largest width or precision that a format may ask for."""
    return max((min(int(digits[:10]), 1 << 40) for digits in _DIGITS.findall(text)), default=0)


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
    # as `Template.new_context` makes it, without going through its chain of dictionaries name by name
    known = template.environment.globals
    context = Context(template.environment, {**known, **variables}, template.name, template.blocks)
    room = MAX_OUTPUT
    for piece in template.root_render_func(context):
        room -= len(piece)
        if room < 0:
            raise SecurityError(f"the text is longer than {MAX_OUTPUT >> 20} Mi characters")
        yield piece
