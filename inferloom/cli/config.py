"""`inferloom config`: write, show, change, check and migrate the configuration file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from inferloom.cli.options import Json, Url
from inferloom.config.home import config_path
from inferloom.config.schema import Config, ModelConfig
from inferloom.errors import ConfigError

app = typer.Typer(
    name="config",
    help="Write, show, change and check the configuration.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

File = Annotated[
    Path | None,
    typer.Option(
        "--config", "--path", metavar="FILE", help="The file.  [default: config.toml in the home folder]"
    ),
]


@app.command()
def init(
    config: File = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Write a configuration that serves here: the starter models on the CPU."""
    from inferloom.config.editing import init as write

    path = config or config_path()
    write(path, force=force)
    print(f"wrote {path}; `inferloom serve` serves it")


@app.command()
def show(
    config: File = None,
    full: Annotated[
        bool, typer.Option("--full", help="Every key, with the defaults of those the file leaves out.")
    ] = False,
) -> None:
    """Print the configuration, without API keys."""
    from inferloom.config.editing import redacted
    from inferloom.config.loading import load, read_text
    from inferloom.config.writing import dumps

    path = config or config_path()
    loaded = load(path)
    sys.stdout.write(redacted(dumps(loaded) if full else read_text(path)))


@app.command("set")
def set_(
    key: Annotated[str, typer.Argument(help="Dotted path, such as server.port or model.0.driver.device.")],
    value: Annotated[str | None, typer.Argument(help="The value; commas make lists.")] = None,
    config: File = None,
    unset: Annotated[
        bool, typer.Option("--unset", help="Take the key out, so that its default holds.")
    ] = False,
) -> None:
    """Change one key. The whole file is checked before it is written; comments stay."""
    from inferloom.config.editing import set_value
    from inferloom.config.editing import unset as remove

    path = config or config_path()
    if unset == (value is not None):
        raise ConfigError("give a value, or --unset, but not both")
    if value is None:
        remove(path, key)
        print(f"{key} is unset in {path}")
    else:
        stored = set_value(path, key, value)
        shown = "<redacted>" if key.startswith("server.api_keys") else _plain(stored)
        print(f"{key} = {shown} in {path}")


@app.command()
def get(
    key: Annotated[str, typer.Argument(help="Dotted path, such as server.port or model.0.source.")],
    config: File = None,
) -> None:
    """Print the value of one key, the default where the file sets none; JSON for lists and tables."""
    from inferloom.config.editing import get as read

    value = read(config or config_path(), key)
    if value is None:
        raise typer.Exit(1)
    print(value if isinstance(value, str) else _plain(value))


@app.command()
def check(
    config: File = None,
    file: Annotated[Path | None, typer.Argument(help="The file to check.")] = None,
) -> None:
    """Say what the configuration would serve, or what is wrong with it (exit 2)."""
    from inferloom.config.forms import load_any

    path = file or config or config_path()
    config_found = load_any(path)
    print(f"{path}: valid")
    print(summary(config_found))


@app.command()
def plan(url: Url = None, as_json: Json = False) -> None:
    """Say what has changed in the running server's file, and what each key takes to hold. Nothing is changed.

    A wrong file is an error with its lines (exit 2).
    """
    _ask_server("plan", url, as_json)


@app.command()
def apply(url: Url = None, as_json: Json = False) -> None:
    """Have the running server's file hold: only models that differ are touched, and they serve on meanwhile.

    The exit status is 1 where a model could not be changed, which then is what it was. A wrong file changes nothing (exit 2).
    """
    answer = _ask_server("apply", url, as_json)
    if answer["failed"]:
        raise typer.Exit(1)


def _ask_server(verb: str, url: str | None, as_json: bool) -> dict[str, Any]:
    from inferloom.cli.models import server
    from inferloom.cli.printing import print_json

    answer = server(url).configuration(verb)
    if as_json:
        print_json(answer)
    else:
        print(_changes(answer))
    return answer


EFFECTS = {
    "now": "at once",
    "reload": "reload of {model}",
    "restart": "restart of the server",
    "added": "the model is added",
    "removed": "the model is removed",
}


def _changes(answer: dict[str, Any]) -> str:
    """The rows of a plan, or of what was applied, and a sentence where something is left to do."""
    from inferloom.cli.printing import rows_of

    rows = [
        (
            one["key"],
            "" if one["before"] is None else _short(one["before"]),
            "" if one["after"] is None else _short(one["after"]),
            EFFECTS[one["effect"]].format(model=one["model"]),
            _outcome(one),
        )
        for one in answer["changes"]
    ]
    if not rows:
        return f"{answer['file']}: all of it holds"
    lines = [rows_of(("KEY", "BEFORE", "AFTER", "TAKES", "DONE"), rows)]
    if answer.get("restart"):
        lines.append(f"start the server again for {', '.join(answer['restart'])}")
    return "\n".join(lines)


def _outcome(change: dict[str, Any]) -> str:
    if "applied" not in change:
        return ""
    if change.get("error"):
        return f"failed: {change['error']}"
    return "yes" if change["applied"] else "no"


def _short(value: Any) -> str:
    text = _plain(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


@app.command()
def migrate(
    config: File = None,
    file: Annotated[Path | None, typer.Argument(help="The file to rewrite.")] = None,
    stdout: Annotated[
        bool, typer.Option("--stdout", help="Print the new text and leave the file as it is.")
    ] = False,
) -> None:
    """Rewrite a file of the older schema; the old one is kept beside it as FILE.old."""
    from inferloom.config.loading import loads, read_text
    from inferloom.config.migration import migrate as rewrite
    from inferloom.config.writing import changing, replace

    path = file or config or config_path()
    if stdout:
        sys.stdout.write(rewrite(read_text(path), origin=str(path)))
        return
    with changing(path):
        old = read_text(path)
        new = rewrite(old, origin=str(path))
        kept = path.with_name(path.name + ".old")
        replace(kept, old)
        replace(path, new)
    print(f"rewrote {path}; the older file is {kept}")
    loads(new, origin=str(path))


@app.command("path")
def path_() -> None:
    """Print where the configuration file is."""
    print(config_path())


@app.command()
def schema() -> None:
    """Print the JSON Schema of the configuration."""
    from inferloom.config.jsonschema import json_schema

    print(json.dumps(json_schema(), indent=2))


def summary(config: Config) -> str:
    """What would be served, a line for each model."""
    host = f"[{config.server.host}]" if ":" in config.server.host else config.server.host
    lines = [f"would serve on http://{host}:{config.server.port}"]
    width = max(len(model.name) for model in config.model)
    return "\n".join(lines + [f"  {model.name:<{width}}  {_line(model, config)}" for model in config.model])


def _line(model: ModelConfig, config: Config) -> str:
    notes = [
        *(["default"] if model is config.default_model else []),
        *([f"also {', '.join(model.aliases)}"] if model.aliases else []),
        *(["lazy"] if model.lazy else []),
    ]
    source = model.weights or "no weights"
    driver = f"{model.driver.type} on {', '.join(model.driver.device)}"
    return f"{source}  {driver}" + (f"  ({'; '.join(notes)})" if notes else "")


def _plain(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
