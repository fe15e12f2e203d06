"""`inferloom serve`: choose the configuration, fetch what is missing, serve, and say so."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from inferloom.cli.serving import check, plan, run
from inferloom.config.file import ConfigFile
from inferloom.config.flags import from_flags
from inferloom.config.forms import load_any
from inferloom.config.home import config_path
from inferloom.config.loading import load
from inferloom.config.schema import Config
from inferloom.errors import ConfigError

_MODELS, _LIMITS, _SERVER = "Models", "Limits", "Server"


def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "-m",
            "--model",
            metavar="SOURCE[,name=x,key=value]",
            help="A short name, path, hub repository or `pypi:` package to serve; repeatable. "
            "`,name=x,key=value` sets the name or any key of [[model]] for this one.",
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="Serve the models of this file; those of -m are added.")
    ] = None,
    host: Annotated[
        str | None, typer.Option("--host", help="Address to listen on.  [default: 127.0.0.1]")
    ] = None,
    port: Annotated[
        int | None, typer.Option("-p", "--port", min=0, max=65535, help="Port to listen on.  [default: 8080]")
    ] = None,
    default_model_id: Annotated[
        str | None,
        typer.Option(help="The model that answers requests which name none.  [default: the first]"),
    ] = None,
    lazy_loading: Annotated[
        bool, typer.Option("--lazy-loading", help="Load models when they are first used.")
    ] = False,
    max_model_len: Annotated[int | None, typer.Option(min=1, help="Context length, in tokens.")] = None,
    max_batch_size: Annotated[int | None, typer.Option(min=1, help="Sequences computed in one step.")] = None,
    max_concurrent_requests: Annotated[
        int | None, typer.Option(min=1, help="Requests answered at a time.")
    ] = None,
    gpu_memory_utilization: Annotated[
        float | None, typer.Option(help="Share of the device's memory to use; on a CPU, of the RAM.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Type of the weights: auto, float32, bfloat16, float16.")
    ] = None,
    quantization: Annotated[
        str | None, typer.Option(help="int8, int4, int4-all; awq or gptq for a checkpoint that is.")
    ] = None,
    adapter: Annotated[str | None, typer.Option(help="Not in this version.")] = None,
    adapter_type: Annotated[str | None, typer.Option(help="Not in this version.")] = None,
    model_class: Annotated[str | None, typer.Option(help="Not in this version.")] = None,
    model_type: Annotated[
        str | None, typer.Option(help="Formats other than our own: not in this version.")
    ] = None,
    tensor_parallel_size: Annotated[int | None, typer.Option(min=1, help="Only 1 in this version.")] = None,
    pipeline_parallel_size: Annotated[int | None, typer.Option(min=1, help="Only 1 in this version.")] = None,
    no_auth: Annotated[bool, typer.Option("--no-auth", help="Not in this version.")] = False,
    no_snapshot: Annotated[bool, typer.Option("--no-snapshot", help="Not in this version.")] = False,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    enable_metrics: Annotated[bool, typer.Option("--enable-metrics", help="On anyway: /metrics.")] = True,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen beyond loopback without API keys.")
    ] = False,
    check_config: Annotated[
        bool, typer.Option("--check-config", help="Check the configuration and exit.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be served and exit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Log at level debug; tracebacks on errors.")] = False,
) -> None:
    """Serve models over an OpenAI-compatible HTTP API.

    Without -m and --config, the models of your configuration file are served (`inferloom config init` writes one).
    """
    del enable_metrics  # the metrics are always there: the flag asks for what is
    read = partial(
        _read,
        model or [],
        config,
        host=host,
        port=port,
        default_model_id=default_model_id,
        lazy_loading=lazy_loading,
        max_model_len=max_model_len,
        max_batch_size=max_batch_size,
        max_concurrent_requests=max_concurrent_requests,
        gpu_memory_utilization=gpu_memory_utilization,
        dtype=dtype,
        quantization=quantization,
        adapter=adapter,
        adapter_type=adapter_type,
        model_class=model_class,
        model_type=model_type,
        tensor_parallel_size=tensor_parallel_size,
        pipeline_parallel_size=pipeline_parallel_size,
        no_auth=no_auth,
        no_snapshot=no_snapshot,
        log_level="debug" if debug else log_level,
        insecure=insecure,
    )
    chosen = read()
    path = config_file(model or [], config)
    if check_config:
        check(chosen)
    elif dry_run:
        plan(chosen)
    else:
        raise typer.Exit(run(chosen, file=None if path is None else ConfigFile(path, read)))


def _read(models: list[str], path: Path | None, **flags: Any) -> Config:
    """The file, and over it the flags."""
    return from_flags(models, base=base_config(models, path), **flags)


def config_file(models: list[str], path: Path | None) -> Path | None:
    """The file whose models are served; None where they come from flags alone."""
    return path if path is not None or models else config_path()


def base_config(models: list[str], path: Path | None) -> Config | None:
    """The file whose models are served: the one named, else the user's own where no model is named."""
    if path is not None:
        return load_any(path)
    if models:
        return None
    path = config_path()
    if not path.exists():
        raise ConfigError(
            f"there is nothing to serve: no -m was given and {path} does not exist. "
            "Try `inferloom serve -m smollm2`, or write that file with `inferloom config init`."
        )
    return load(path)
