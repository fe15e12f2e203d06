"""From a configuration to a server on the terminal: check it, show it, or fetch what is missing and run it."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from typing import TYPE_CHECKING, Any

from inferloom import __version__
from inferloom.cli.fetch import fetch, missing
from inferloom.cli.listing import PLAN_COLUMNS, declared, table
from inferloom.config.file import ConfigFile
from inferloom.config.schema import Config, ModelConfig

if TYPE_CHECKING:
    from inferloom.catalog.catalog import Catalog
    from inferloom.catalog.lifecycle import Transition

QUESTION = "What is the capital of France?"


def check(config: Config) -> None:
    """Say that the configuration is right; a wrong one raised before it came here."""
    count = len(config.model)
    print(f"the configuration is valid: {count} model{'' if count == 1 else 's'}")


def plan(config: Config) -> None:
    """Print what would be served, without loading or fetching anything."""
    print(f"would serve on {address(config)}")
    print(table([declared(model, config) for model in config.model], PLAN_COLUMNS))


def run(config: Config, *, file: ConfigFile | None = None) -> int:
    """Serve until a signal ends it; the exit code. `file`: where the configuration came from."""
    absent = missing(config)
    if absent:
        from inferloom.gateway.server import bind

        bind(config.server).close()  # a port in use is told before the download, not after it
    fetch(absent)

    from inferloom.worker.pool import WorkerPool

    pool = WorkerPool.for_config(config)
    pool.launch()  # what it imports and what we import take a processor each

    def listening(catalog: Catalog) -> None:
        print(banner(config), flush=True)
        catalog.observe(announce)
        if sys.stderr.isatty():
            # The lines of `announce` say it on a terminal; warnings and errors stay.
            logging.getLogger("inferloom.catalog").setLevel(
                logging.DEBUG if config.server.log_level == "debug" else logging.WARNING
            )

    try:
        from inferloom.gateway.server import serve

        return serve(config, on_ready=listening, file=file, pool=pool)
    finally:
        pool.abandon()


def announce(change: Transition) -> None:
    """Say when a model is ready to answer, and when it is gone. (Failures are in the log.)"""
    if change.new == "ready":
        print(f"{change.id} ready in {change.load_seconds or 0.0:.2f} s", flush=True)
    elif change.new == "unloaded":
        print(f"{change.id} unloaded", flush=True)


def address(config: Config) -> str:
    """The URL at which this machine reaches the server."""
    host = config.server.host
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{config.server.port}"


def banner(config: Config) -> str:
    """The first lines on the terminal: what is served, where, and a request to try."""
    default = config.default_model
    assert default is not None, "a configuration without models is refused"
    width = max(len(model.name) for model in config.model)
    lines = [f"inferloom {__version__} serves on {address(config)}"]
    for model in config.model:
        notes = [note for note, true in (("default", model is default), ("lazy", model.lazy)) if true]
        suffix = f"  ({', '.join(notes)})" if notes else ""
        lines.append(f"  {model.name:<{width}}  {model.weights or model.driver.type}{suffix}")
    return "\n".join([*lines, "try:", f"  {example(config, default)}"])


def example(config: Config, model: ModelConfig) -> str:
    """A curl that works as it stands, for the model's kind. A key is never shown."""
    from inferloom.gateway.access import api_keys

    if is_embedder(model):
        path = "embeddings"
        payload: dict[str, Any] = {"model": model.name, "input": QUESTION}
    else:
        path = "chat/completions"
        payload = {"model": model.name, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
    arguments = ["curl", f"{address(config)}/v1/{path}", "-H", "Content-Type: application/json"]
    command = shlex.join([*arguments, "-d", json.dumps(payload, ensure_ascii=False)])
    if api_keys(config.server):
        command += ' -H "Authorization: Bearer $INFERLOOM_API_KEY"'
    return command


def is_embedder(model: ModelConfig) -> bool:
    """Whether the table of short names, or the dummy's option, says that a model makes embeddings."""
    from inferloom.sources.table import SHORT_NAMES

    if model.driver.type == "dummy":
        return model.driver.options.get("kind") == "embed"
    short = SHORT_NAMES.get(model.weights or "")
    return short is not None and short.kind == "embed"
