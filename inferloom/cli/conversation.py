"""A chat as data: its turns, its settings, what it measured. The terminal around it is in `chat.py`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator
from pathlib import Path

import msgspec

from inferloom.cli.session import Message, Piece, Session
from inferloom.errors import ConfigError


class AnswerStats(msgspec.Struct, frozen=True, kw_only=True):
    """One answer: tokens, seconds to the first text and in all."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_seconds: float = 0.0
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """The rate after the first token; 0 where there is nothing to divide."""
        later = self.seconds - self.first_seconds
        return (self.completion_tokens - 1) / later if later > 0 and self.completion_tokens > 1 else 0.0


class Conversation:
    """Turns of one chat. An answer that was ended early stays in it as far as it came."""

    def __init__(
        self,
        session: Session,
        *,
        model: str | None = None,
        system: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.session = session
        self.model = model
        self.system = system
        self.max_tokens = max_tokens
        self.temperature = temperature
        self.turns: list[Message] = []
        self.stats: list[AnswerStats] = []
        self._clock = clock

    def messages(self) -> list[Message]:
        """What is sent: the system prompt, where one was set, and every turn."""
        return [*([Message("system", self.system)] if self.system else []), *self.turns]

    def ask(self, text: str) -> Generator[str, None, None]:
        """Add the user's turn and stream the model's. Closing the iterator keeps what was said so far; an error
        before the first word takes the question back."""
        self.turns.append(Message("user", text))
        said: list[str] = []
        began = self._clock()
        first = 0.0
        usage = Piece()
        answer = self.session.chat(
            self.messages(), model=self.model, max_tokens=self.max_tokens, temperature=self.temperature
        )
        try:
            for piece in answer:
                if piece.text:
                    first = first or self._clock() - began
                    said.append(piece.text)
                    yield piece.text
                if piece.completion_tokens:
                    usage = piece
        finally:
            answer.close()
            if said:
                self.turns.append(Message("assistant", "".join(said)))
                self.stats.append(
                    AnswerStats(
                        prompt_tokens=usage.prompt_tokens,
                        completion_tokens=usage.completion_tokens,
                        first_seconds=first,
                        seconds=self._clock() - began,
                    )
                )
            else:
                self.turns.pop()

    def clear(self) -> None:
        self.turns.clear()

    def save(self, path: Path) -> None:
        """Write the chat: Markdown where the name ends in `.md`, else JSON as the API takes it.

        Raises `ConfigError` where the file cannot be written.
        """
        messages = self.messages()
        if path.suffix == ".md":
            text = "\n\n".join(f"**{message.role}:** {message.content}" for message in messages) + "\n"
        else:
            body = {"model": self.model, "messages": [msgspec.to_builtins(message) for message in messages]}
            text = json.dumps(body, ensure_ascii=False, indent=2) + "\n"
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"the chat was not saved: {path}: {error.strerror}") from None

    def summary(self) -> str:
        """Turns, tokens and speed, of the last answer and of all."""
        if not self.stats:
            return "no answer yet"
        last = self.stats[-1]
        total = sum(one.completion_tokens for one in self.stats)
        lines = [
            f"last answer: {last.completion_tokens} tokens in {last.seconds:.2f} s, first after "
            f"{last.first_seconds * 1000:.0f} ms, then {last.tokens_per_second:.0f} tokens/s, "
            f"prompt {last.prompt_tokens} tokens",
            f"chat: {len(self.stats)} answers, {total} tokens in {sum(one.seconds for one in self.stats):.1f} s",
        ]
        return "\n".join(lines)
