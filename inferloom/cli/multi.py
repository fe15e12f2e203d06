"""`inferloom from-config --file F` and `multi-model --config F`: serve the models of one file, in whichever form."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from inferloom.config.file import ConfigFile
from inferloom.config.flags import from_flags
from inferloom.config.forms import load_any
from inferloom.config.schema import Config

_DEFAULT = typer.Option(
    "--default-model-id", help="Model of requests that name none: its id, alias or model_id."
)
_HOST = typer.Option("--host", help="Address to listen on.  [default: the file's]")
_PORT = typer.Option("-p", "--port", min=0, max=65535, help="Port to listen on.  [default: the file's]")
_CHECK = typer.Option("--check-config", help="Check the file and exit.")
_DRY_RUN = typer.Option("--dry-run", help="Show what would be served and exit.")
_DEBUG = typer.Option("--debug", help="Log at level debug; tracebacks on errors.")


def chosen(
    path: Path, *, default_model_id: str | None, host: str | None, port: int | None, debug: bool = False
) -> Config:
    """The configuration in `path` with the flags laid over it; raises ConfigError."""
    base = load_any(path, default_model_id=default_model_id)
    return from_flags([], base=base, host=host, port=port, log_level="debug" if debug else None)


def from_config(
    file: Annotated[Path, typer.Option("-f", "--file", help="TOML or JSON, ours or mistral.rs's.")],
    default_model_id: Annotated[str | None, _DEFAULT] = None,
    host: Annotated[str | None, _HOST] = None,
    port: Annotated[int | None, _PORT] = None,
    check_config: Annotated[bool, _CHECK] = False,
    dry_run: Annotated[bool, _DRY_RUN] = False,
    debug: Annotated[bool, _DEBUG] = False,
) -> None:
    """Serve the models of a TOML or JSON configuration file."""
    _serve(
        file,
        partial(chosen, file, default_model_id=default_model_id, host=host, port=port, debug=debug),
        check_config=check_config,
        dry_run=dry_run,
    )


def multi_model(
    config: Annotated[Path, typer.Option("--config", help="TOML or JSON, ours or mistral.rs's.")],
    default_model_id: Annotated[str | None, _DEFAULT] = None,
    host: Annotated[str | None, _HOST] = None,
    port: Annotated[int | None, _PORT] = None,
    check_config: Annotated[bool, _CHECK] = False,
    dry_run: Annotated[bool, _DRY_RUN] = False,
    debug: Annotated[bool, _DEBUG] = False,
) -> None:
    """Serve the models of a configuration file: the older name of `from-config`."""
    _serve(
        config,
        partial(chosen, config, default_model_id=default_model_id, host=host, port=port, debug=debug),
        check_config=check_config,
        dry_run=dry_run,
    )


def _serve(path: Path, read: Callable[[], Config], *, check_config: bool, dry_run: bool) -> None:
    from inferloom.cli.serving import check, plan, run

    config = read()
    if check_config:
        check(config)
    elif dry_run:
        plan(config)
    else:
        raise typer.Exit(run(config, file=ConfigFile(path, read)))
