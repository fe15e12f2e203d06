"""`inferloom chat`: a conversation in the terminal."""

from __future__ import annotations

import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import Annotated

import typer

from inferloom.cli.conversation import Conversation
from inferloom.cli.listing import LIST_COLUMNS, table
from inferloom.cli.options import Model, SystemPrompt, Url
from inferloom.cli.session import open_session
from inferloom.config.home import home
from inferloom.errors import InferloomError, ModelNotFound

HELP = """\
/model [NAME]    show the models, or talk to another one
/system [TEXT]   show or set the system prompt; `/system -` goes back to the model's own
/history         show the chat so far
/clear           forget the chat so far
/save FILE       write the chat to FILE (.md: Markdown, else JSON)
/stats           tokens and speed
/help            this text
/quit            leave (so does Ctrl-D); Ctrl-C ends the current answer"""


def chat(
    model: Model = None,
    system: SystemPrompt = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Length of an answer, in tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, max=2.0, help="0 is greedy.")] = None,
    url: Url = None,
) -> None:
    """Chat with a model in the terminal.

    The running server answers; where there is none, the model is started for this chat. /help lists the commands.
    """
    with open_session(url, model) as session:
        conversation = Conversation(
            session,
            model=None if session.own else model,
            system=system,
            max_tokens=max_tokens,
            temperature=temperature,
        )
        Terminal(conversation).run()


class Terminal:
    """Reads lines, runs `/` commands, prints answers; a prompt is shown to people only."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self._commands = {
            "model": self._model,
            "system": self._system,
            "history": self._history,
            "clear": self._clear,
            "save": self._save,
            "stats": self._stats,
            "help": self._help,
        }

    def run(self) -> None:
        interactive = sys.stdin.isatty()
        if interactive:
            print("/help lists the commands, Ctrl-D leaves.")
        with _line_history(interactive):
            while True:
                try:
                    line = input("> " if interactive else "").strip()
                except EOFError:
                    break
                except KeyboardInterrupt:
                    print()
                    continue
                if line in ("/quit", "/exit"):
                    return
                if line:
                    self._handle(line)
        if interactive:
            print()

    def _handle(self, line: str) -> None:
        try:
            if line.startswith("/"):
                name, _, argument = line[1:].partition(" ")
                command = self._commands.get(name)
                if command is None:
                    print(f"there is no command /{name}; /help lists them", file=sys.stderr)
                else:
                    command(argument.strip())
            else:
                self._answer(line)
        except InferloomError as error:
            print(f"error: {error.message}", file=sys.stderr)

    def _answer(self, text: str) -> None:
        with closing(self._conversation.ask(text)) as answer, suppress(KeyboardInterrupt):
            for piece in answer:
                sys.stdout.write(piece)
                sys.stdout.flush()
        print()

    # the commands
    def _model(self, name: str) -> None:
        session = self._conversation.session
        if not name:
            print(table(session.models(), LIST_COLUMNS))
            return
        if session.own:
            raise ModelNotFound(
                "this chat started one model for itself; run `inferloom serve` to switch between models"
            )
        self._conversation.model = session.find(name).id
        print(f"talking to {self._conversation.model}")

    def _system(self, text: str) -> None:
        if text:
            self._conversation.system = None if text == "-" else text
        print(f"system prompt: {self._conversation.system or 'the model’s own'}")

    def _history(self, _: str) -> None:
        for message in self._conversation.messages():
            print(f"{message.role}: {message.content}")

    def _clear(self, _: str) -> None:
        self._conversation.clear()

    def _save(self, path: str) -> None:
        target = Path(path or "chat.json").expanduser()
        self._conversation.save(target)
        print(f"saved to {target}")

    def _stats(self, _: str) -> None:
        print(self._conversation.summary())

    def _help(self, _: str) -> None:
        print(HELP)


class _line_history:
    """Keeps what was typed between chats, where a person types: the arrow keys bring it back."""

    def __init__(self, interactive: bool) -> None:
        self._path = home() / "chat_history" if interactive else None

    def __enter__(self) -> None:
        if self._path is not None:
            with suppress(ImportError, OSError):
                import readline

                readline.read_history_file(self._path)

    def __exit__(self, *_: object) -> None:
        if self._path is not None:
            with suppress(ImportError, OSError):
                import readline

                readline.set_history_length(1000)
                self._path.parent.mkdir(parents=True, exist_ok=True)
                readline.write_history_file(self._path)
