"""`inferloom bench`: how fast an OpenAI-compatible endpoint answers, over a sweep of concurrent users."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path
from typing import Annotated, Any

import typer

from inferloom.cli.bench_report import Level, as_json, picture, table
from inferloom.cli.load import Connection, Endpoint, Sample
from inferloom.cli.options import DEFAULT_URL
from inferloom.cli.transport import NoServer
from inferloom.errors import ConfigError, InferloomError, InvalidRequest

WORDS = (
    "sea",
    "and",
    "sky",
    "are",
    "wide",
    "blue",
    "calm",
    "old",
    "red",
    "sun",
    "low",
    "big",
    "tree",
    "hill",
    "rain",
    "wind",
)
PROBE_WORDS = 64


class BenchFailed(InferloomError):
    """The endpoint answers, but not with what could be measured."""

    status = 502
    code = "bench_failed"


def bench(
    url: Annotated[
        str | None,
        typer.Option(
            "--url", help=f"Any OpenAI-compatible server.  [default: INFERLOOM_URL, else {DEFAULT_URL}]"
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("-m", "--model", help="Its model.  [default: the first it lists]")
    ] = None,
    concurrency: Annotated[
        str, typer.Option("-c", "--concurrency", help="Concurrent users, one level after another.")
    ] = "1,2,4,8,16",
    requests: Annotated[
        int | None,
        typer.Option("-n", "--requests", min=1, help="Requests a level.  [default: 4, or two for each user]"),
    ] = None,
    input_tokens: Annotated[int, typer.Option(min=1, help="Length of a prompt, about.")] = 128,
    output_tokens: Annotated[int, typer.Option(min=1, help="Length of an answer.")] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0)] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the prompts' words.")] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures there; - is standard output.")
    ] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Write a chart (SVG) there.")] = None,
) -> None:
    """Measure an OpenAI-compatible server: tokens a second, time to the first token, time between tokens.

    Every prompt is different, so that no cache of prompts answers. Each level begins when the one before has ended.
    Answers go on to their full length where the server knows ignore_eos. INFERLOOM_API_KEY is sent where it is set.
    """
    levels = _levels(concurrency)
    for path in (json_file, plot):
        if path is not None and str(path) != "-" and not path.parent.is_dir():
            raise InvalidRequest(f"{path} cannot be written: there is no folder {path.parent}")
    endpoint = Endpoint(
        url or os.environ.get("INFERLOOM_URL") or DEFAULT_URL, api_key=os.environ.get("INFERLOOM_API_KEY")
    )
    quiet = json_file is not None and str(json_file) == "-"
    load = _Load(
        endpoint, input_tokens=input_tokens, output_tokens=output_tokens, temperature=temperature, seed=seed
    )
    about, measured = asyncio.run(load.run(model, levels, requests, say=_silent if quiet else typer.echo))
    if not quiet:
        typer.echo(table(measured))
    failed = next((level for level in measured if level.error is not None), None)
    if failed is not None:
        typer.echo(
            f"{failed.errors} of {failed.requests} requests at {failed.concurrency} users failed: {failed.error}",
            err=True,
        )
    if json_file is not None:
        _write(json_file, as_json(measured, **about).decode())
    if plot is not None:
        _write(
            plot, picture(measured, title=f"{about['model']}, {input_tokens} tokens in, {output_tokens} out")
        )
    if failed is not None:
        raise typer.Exit(1)


def _silent(message: str) -> None:
    return None


def _write(path: Path, text: str) -> None:
    if str(path) == "-":
        typer.echo(text, nl=False)
        return
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be written: {error.strerror}") from None


def _levels(written: str) -> list[int]:
    try:
        levels = [int(part) for part in written.split(",")]
    except ValueError:
        levels = []
    if not levels or min(levels) < 1:
        raise ConfigError(
            f"--concurrency {written}: write whole numbers with commas between them, like 1,4,16."
        )
    return levels


class _Load:
    """The prompts, and the users that send them."""

    def __init__(
        self, endpoint: Endpoint, *, input_tokens: int, output_tokens: int, temperature: float, seed: int
    ) -> None:
        self._endpoint = endpoint
        self._input_tokens = input_tokens
        self._output_tokens = output_tokens
        self._temperature = temperature
        self._random = random.Random(seed)
        self._words = PROBE_WORDS
        self._extra: dict[str, Any] = {"ignore_eos": True}

    async def run(
        self, model: str | None, levels: list[int], requests: int | None, *, say: Any
    ) -> tuple[dict[str, Any], list[Level]]:
        name = model or await self._first_model()
        await self._calibrate(name)
        say(
            f"{name} at {self._endpoint.url}: about {self._input_tokens} tokens in, {self._output_tokens} out"
        )
        measured = []
        for users in levels:
            samples = await self._level(name, users, requests or max(4, 2 * users))
            measured.append(Level.of(samples, concurrency=users))
        about = {
            "url": self._endpoint.url,
            "model": name,
            "input_tokens": self._input_tokens,
            "output_tokens": self._output_tokens,
            "temperature": self._temperature,
            "ignore_eos": bool(self._extra),
        }
        return about, measured

    async def _first_model(self) -> str:
        listing = await Connection(self._endpoint).get("/v1/models")
        rows = listing.get("data", []) if isinstance(listing, dict) else []
        names = [row["id"] for row in rows if isinstance(row, dict) and "id" in row]
        if not names:
            raise BenchFailed(f"{self._endpoint.url} lists no model; name one with --model")
        return str(next((name for name in names if name != "default"), names[0]))

    async def _calibrate(self, model: str) -> None:
        """One request of known words: it loads the model, tells how many tokens words are, and whether ignore_eos is known."""
        connection = Connection(self._endpoint)
        sample = await self._ask(connection, model, self._prompt(self._words), 2)
        if sample.error is not None and sample.status in (400, 422):
            self._extra = {}
            sample = await self._ask(connection, model, self._prompt(self._words), 2)
        short = await self._ask(connection, model, self._prompt(self._words // 2), 2)
        connection.close()
        for one in (sample, short):
            if one.error is not None:
                raise BenchFailed(f"{model} at {self._endpoint.url} does not answer: {one.error}")
        each = (sample.prompt_tokens - short.prompt_tokens) / (self._words - self._words // 2)
        if each > 0:
            template = sample.prompt_tokens - each * self._words
            self._words = max(1, round((self._input_tokens - template) / each))
        else:  # a server that counts no tokens
            self._words = self._input_tokens

    async def _level(self, model: str, users: int, requests: int) -> list[Sample]:
        left = iter([self._prompt(self._words) for _ in range(requests)])
        samples: list[Sample] = []

        async def user() -> None:
            connection = Connection(self._endpoint)
            try:
                for prompt in left:
                    samples.append(await self._ask(connection, model, prompt, self._output_tokens))
            finally:
                connection.close()

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(users, requests)):
                    group.create_task(user())
        except* NoServer as gone:
            raise gone.exceptions[0] from None
        return samples

    async def _ask(self, connection: Connection, model: str, prompt: str, tokens: int) -> Sample:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": tokens,
            "temperature": self._temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._extra,
        }
        return await connection.stream("/v1/chat/completions", body)

    def _prompt(self, words: int) -> str:
        return " ".join(self._random.choices(WORDS, k=words))
