"""A model's chat template: compiled once, rendered within limits, refused for good once it broke them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from jinja2.exceptions import SecurityError

from inferloom.errors import InvalidRequest, LoadFailed
from inferloom.text.limits import OutOfTime, run_limited
from inferloom.text.sandbox import Sandbox, render_pieces

RENDER_SECONDS = 2.0
RENDER_BYTES = 512 << 20

_SANDBOX = Sandbox()


class ChatTemplate:
    """One template text. `render` is for the event loop: a usual chat takes tens of microseconds."""

    def __init__(self, source: str) -> None:
        """Raises `LoadFailed` for a text that is no template, or one that is too much to compile."""
        self.knows_developer = "developer" in source  # the role
        self._refused: str | None = None
        try:
            self._template = run_limited(
                lambda: _SANDBOX.from_string(source), seconds=RENDER_SECONDS, memory=RENDER_BYTES
            )
        except jinja2.TemplateSyntaxError as error:
            raise LoadFailed(
                f"the chat template cannot be parsed: {error.message} (its line {error.lineno}); "
                "give another one with chat_template="
            ) from error
        except (OutOfTime, MemoryError, RecursionError, OverflowError, ValueError, SyntaxError) as error:
            raise LoadFailed(
                f"the chat template cannot be compiled ({type(error).__name__}); give another one with chat_template="
            ) from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None,
        variables: Mapping[str, Any],
        ordinary: bool = True,
    ) -> str:
        """The prompt's text. Raises `InvalidRequest` with the template's own complaint, or what went wrong in it.

        A template that breaks a limit on an `ordinary` request (neither huge nor with variables of its own) is
        refused at once from then on; on any other request, the request alone is: a client must not be able to
        take the model away from everybody.
        """
        if self._refused is not None:
            raise InvalidRequest(self._refused, param="messages")
        values = {
            "documents": None,
            "add_generation_prompt": True,
            **variables,
            "messages": messages,
            "tools": tools,
        }
        try:
            return run_limited(
                lambda: "".join(render_pieces(self._template, values)),
                seconds=RENDER_SECONDS,
                memory=RENDER_BYTES,
            )
        except OutOfTime:
            broken = f"it ran for more than {RENDER_SECONDS:g} s"
        except MemoryError:
            broken = f"it asked for more than {RENDER_BYTES >> 20} MiB of memory"
        except (SecurityError, OverflowError) as error:
            broken = str(error)
        except jinja2.TemplateError as error:
            raise InvalidRequest(
                f"the model's chat template refuses these messages: {error.message or type(error).__name__}",
                param="messages",
            ) from error
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise InvalidRequest(
                f"the model's chat template fails on these messages: {type(error).__name__}: {error}; "
                "another template can be given with chat_template=",
                param="messages",
            ) from error
        if not ordinary:
            raise InvalidRequest(
                f"the model's chat template cannot be rendered for this request: {broken}", param="messages"
            )
        self._refused = f"the model's chat template is refused: {broken}; give another one with chat_template= in its configuration"
        raise InvalidRequest(self._refused, param="messages")
