"""The `inferloom` command: the table of sub-commands, and the one place where errors become exit codes.

Nothing heavy is imported here, so `inferloom --help` answers in a fraction of a second: a command's module is
imported when the command is used.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from inferloom import __version__
from inferloom.errors import ConfigError, InferloomError, InvalidRequest, NotFound

USAGE_ERROR = 2
FAILURE = 1
INTERRUPTED = 130
SERVING = ("serve", "from-config", "multi-model")


class Entry(NamedTuple):
    """Where a command lives: `module` of this package, and the Typer (or function) in it; `help` for the listing."""

    module: str
    attribute: str
    help: str
    hidden: bool = False


COMMANDS: dict[str, Entry] = {
    "serve": Entry("serve", "serve", "Serve models over an OpenAI-compatible HTTP API."),
    "ask": Entry("ask", "ask", "Ask a model one question and print the answer."),
    "chat": Entry("chat", "chat", "Chat with a model in the terminal."),
    "models": Entry("models", "models", "List the models, their state and where they come from."),
    "load": Entry("models", "load", "Load a model of the running server."),
    "unload": Entry("models", "unload", "Unload a model of the running server."),
    "reload": Entry("models", "reload", "Reload a model of the running server."),
    "pin": Entry("models", "pin", "Keep a model of the running server in memory."),
    "plan": Entry("models", "plan", "Say what loading a model would take, and whom it would push out."),
    "top": Entry("top", "top", "Watch the models of the running server: state, memory, speed, queue."),
    "model": Entry("model", "app", "List, download and remove models of the hub's cache."),
    "pull": Entry("pull", "pull", "Download a model, check it and make it ready to be served."),
    "bench": Entry("bench", "bench", "Measure a server: tokens a second, latencies, a sweep over users."),
    "doctor": Entry("doctor", "doctor", "What this machine offers, and what would make it faster."),
    "cache": Entry("cache", "app", "List and clear the cache of downloaded, converted and packed weights."),
    "config": Entry("config", "app", "Write, show, change and check the configuration."),
    "from-config": Entry("multi", "from_config", "Serve the models of a TOML or JSON configuration file."),
    "multi-model": Entry("multi", "multi_model", "The older name of from-config.", hidden=True),
}


class LazyGroup(TyperGroup):
    """A group whose commands are imported when they are run; listing them imports none."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name, entry in COMMANDS.items():
            # A stand-in that knows its name and one line of help: enough for the listing.
            stand_in = TyperCommand(name, help=entry.help, short_help=entry.help, hidden=entry.hidden)
            self.commands[name] = stand_in

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        if name in COMMANDS:
            command = load_command(name)
        return name, command, rest


def load_command(name: str) -> Any:
    """Import the command `name` and return it as a click command."""
    entry = COMMANDS[name]
    found = getattr(importlib.import_module(f"inferloom.cli.{entry.module}"), entry.attribute)
    if not isinstance(found, typer.Typer):
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        single.command(name=name, help=found.__doc__ or entry.help)(found)
        found = single
    command = typer.main.get_command(found)
    command.name = name
    return command


app = typer.Typer(
    name="inferloom",
    cls=LazyGroup,
    help="Many language models behind one API, loaded and unloaded in milliseconds.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"inferloom {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback when something fails.")] = False,
) -> None:
    # `main` reads `--debug` from the arguments, before or after the command's name.
    del version, debug


def exit_code(error: InferloomError) -> int:
    """2 where what was asked for cannot be done as written, 1 where doing it failed."""
    return USAGE_ERROR if isinstance(error, (ConfigError, InvalidRequest, NotFound)) else FAILURE


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit: 0, 1 (it failed), 2 (usage or configuration), 130 (interrupted)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    command = next((argument for argument in arguments if not argument.startswith("-")), None)
    if command not in SERVING:  # which know it themselves: to them it is also a level of logging
        arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        typer.main.get_command(app).main(args=arguments, prog_name="inferloom")
    except InferloomError as error:
        if debug:
            raise
        _complain(error.message)
        sys.exit(exit_code(error))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader of a pipe has gone; what is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILURE)
    except Exception as error:
        if debug:
            raise
        _complain(f"{type(error).__name__}: {error} (a defect of inferloom; --debug shows where)")
        sys.exit(FAILURE)


def _complain(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)


if __name__ == "__main__":
    main()
