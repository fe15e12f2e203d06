"""`inferloom ask`: one question, one answer, streamed to standard output."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from inferloom.cli.options import Model, SystemPrompt, Url
from inferloom.cli.session import Message, open_session
from inferloom.errors import InvalidRequest


def ask(
    prompt: Annotated[
        list[str] | None, typer.Argument(help="The question; what is piped in is put after it.")
    ] = None,
    model: Model = None,
    system: SystemPrompt = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Length of the answer, in tokens.")] = None,
    temperature: Annotated[
        float, typer.Option(min=0.0, max=2.0, help="0 is greedy: the likeliest answer.")
    ] = 0.0,
    url: Url = None,
) -> None:
    """Ask a model one question and print the answer.

    The running server answers; where there is none, the model is started for this one question.
    """
    question = " ".join(prompt or [])
    if sys.stdin is not None and not sys.stdin.isatty():
        question = "\n\n".join(part for part in (question, sys.stdin.read().strip()) if part)
    if not question:
        raise InvalidRequest('there is no question: try `inferloom ask "What is the capital of France?"`')
    messages = [Message("user", question)]
    if system is not None:
        messages.insert(0, Message("system", system))
    with open_session(url, model) as session:
        # A server knows the model by the name that was given; a model started here is the only one there is.
        target = None if session.own else model
        ends_with = "\n"
        for piece in session.chat(messages, model=target, max_tokens=max_tokens, temperature=temperature):
            if piece.text:
                sys.stdout.write(piece.text)
                sys.stdout.flush()
                ends_with = piece.text[-1]
        if ends_with != "\n":
            sys.stdout.write("\n")
