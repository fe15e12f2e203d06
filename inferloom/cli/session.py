"""What the commands talk to: the running server where one answers, else the models, started in this process."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from urllib.parse import quote

import msgspec

from inferloom.cli.listing import ModelRow
from inferloom.cli.options import DEFAULT_URL
from inferloom.cli.transport import AppTransport, HttpTransport, NoServer, Reply, Transport
from inferloom.config.schema import Config
from inferloom.errors import InferloomError, InvalidRequest, ModelNotFound, Unauthorized, Unsupported


class Message(msgspec.Struct, frozen=True):
    """One turn of a chat: role `system`, `user` or `assistant`."""

    role: str
    content: str


class Piece(msgspec.Struct, frozen=True):
    """What arrived of an answer. The last piece has the token counts where the server sends them."""

    text: str = ""
    reasoning: str = ""
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Session:
    """The HTTP interface as the commands use it. Errors of the server are raised as errors of `errors.py`."""

    def __init__(self, transport: Transport, *, own: bool = False) -> None:
        self._transport = transport
        self.own = own  # the model was started for this session: it is the only one

    def models(self) -> list[ModelRow]:
        """Every declared model in the order of the configuration."""
        return [row_of(card) for card in self.cards()]

    def cards(self) -> list[dict[str, Any]]:
        """What `/v1/models/{id}` says of every declared model, in the same order."""
        listing = self._get("/v1/models")
        # "default" stands first and stands for another one, without a status of its own, unless a model is named so.
        names = [item["id"] for item in listing["data"] if item["id"] != "default" or "status" in item]
        return [self._get(f"/v1/models/{quote(name)}") for name in names]

    def find(self, name: str) -> ModelRow:
        """The model of that id or alias. Raises `ModelNotFound`."""
        return row_of(self._get(f"/v1/models/{quote(name)}"))

    def chat(
        self,
        messages: Sequence[Message],
        *,
        model: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
    ) -> Generator[Piece, None, None]:
        """Stream one answer. Closing the iterator before its end cancels the generation."""
        payload: dict[str, Any] = {
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        for key, value in (("model", model), ("max_tokens", max_tokens), ("temperature", temperature)):
            if value is not None:
                payload[key] = value
        reply = self._checked(self._transport.request("POST", "/v1/chat/completions", payload))
        try:
            yield from _pieces(reply)
        finally:
            reply.close()

    def lifecycle(self, verb: str, model: str, **fields: Any) -> dict[str, Any]:
        """`load`, `unload`, `reload`, `pin` or `plan` for a declared model; the server's answer.

        Raises `Unsupported` where the server is older than the verb.
        """
        reply = self._transport.request("POST", f"/v1/models/{verb}", {"model_id": model, **fields})
        if reply.status in (404, 405):
            body = reply.json()
            if _code(body) in (None, "not_found", "method_not_allowed"):
                raise Unsupported(f"`{verb}`", "the running server is older than this command.")
            raise _error(reply.status, body)
        answer: dict[str, Any] = self._checked(reply).json()
        return answer

    def configuration(self, verb: str) -> dict[str, Any]:
        """`plan` or `apply` for the server's own configuration file; its answer. Raises `Unsupported` where the server is
        older than that."""
        reply = self._transport.request("POST", f"/v1/config/{verb}", {})
        if reply.status in (404, 405):
            reply.close()
            raise Unsupported(f"`config {verb}`", "the running server is older than this command.")
        answer: dict[str, Any] = self._checked(reply).json()
        return answer

    def metrics(self) -> str:
        """What `GET /metrics` says; empty where the server keeps none."""
        reply = self._transport.request("GET", "/metrics")
        text = b"\n".join(reply.lines()).decode("utf-8", "replace")
        reply.close()
        return text if reply.status == 200 else ""

    def events(self, model: str | None = None) -> Iterator[tuple[str, Any]]:
        """Name and data of what happens to the models, or to one, until the server ends the stream; nothing where it has
        none."""
        query = "" if model is None else f"?model={quote(model, safe='')}"
        reply = self._transport.request("GET", f"/v1/events{query}")
        try:
            if reply.status != 200:
                return
            name = "message"
            for line in reply.lines():
                if line.startswith(b"event:"):
                    name = line[6:].strip().decode()
                elif line.startswith(b"data:"):
                    yield name, json.loads(line[5:])
                    name = "message"
        finally:
            reply.close()

    def _get(self, path: str) -> Any:
        return self._checked(self._transport.request("GET", path)).json()

    @staticmethod
    def _checked(reply: Reply) -> Reply:
        if reply.status < 400:
            return reply
        raise _error(reply.status, reply.json())


def row_of(card: dict[str, Any]) -> ModelRow:
    """What `/v1/models/{id}` says, as a row of the listing. What an older server does not say is left empty."""
    held = card.get("bytes")
    kinds = held if isinstance(held, dict) else {}
    return ModelRow(
        id=card["id"],
        state=str(card.get("state") or card.get("status") or ""),
        kind=str(card.get("kind") or ""),
        parameters=int(card.get("parameters") or 0),
        bytes=int(card.get("weight_bytes") or 0),
        source=str(card.get("root") or ""),
        driver=str(card.get("driver") or ""),
        system_prompt=card.get("system_prompt"),
        default=bool(card.get("default")),
        stage=str(card.get("stage") or ""),
        fraction=card.get("fraction"),
        reason=str(card.get("reason") or ""),
        memory=int(kinds.get("measured") or 0),
        reserved=sum(int(kinds.get(kind) or 0) for kind in ("weights", "kv", "workspace")),
        expires_at=_moment(card.get("expires_at")),
        pinned=bool(card.get("pinned")),
        waiting=int(card.get("waiting") or 0),
        shares=[str(name) for name in card.get("shares") or ()],
    )


def _moment(value: Any) -> float | None:
    """Seconds since the epoch, of a number or an ISO date."""
    if isinstance(value, str):
        try:
            return datetime.fromisoformat(value).timestamp()
        except ValueError:
            return None
    return float(value) if isinstance(value, int | float) else None


def _pieces(reply: Reply) -> Iterator[Piece]:
    for line in reply.lines():
        if not line.startswith(b"data:"):
            continue  # a comment that keeps the connection alive, or the empty line between events
        data = line[5:].strip()
        if data == b"[DONE]":
            return
        event = json.loads(data)
        if "error" in event:
            raise _error(502, event)
        usage = event.get("usage")
        if usage:
            yield Piece(
                prompt_tokens=usage.get("prompt_tokens", 0),
                completion_tokens=usage.get("completion_tokens", 0),
            )
        for choice in event.get("choices", ()):
            delta = choice.get("delta") or {}
            yield Piece(
                text=delta.get("content") or "",
                reasoning=delta.get("reasoning_content") or "",
                finish_reason=choice.get("finish_reason"),
            )


def _code(body: Any) -> str | None:
    detail = body.get("error") if isinstance(body, dict) else None
    return detail.get("code") if isinstance(detail, dict) else None


def _error(status: int, body: Any) -> InferloomError:
    detail = body.get("error") if isinstance(body, dict) else None
    message = detail.get("message") if isinstance(detail, dict) else None
    message = message or f"the server answered with status {status}"
    code = _code(body)
    if status == 401:
        return Unauthorized(f"{message} (set INFERLOOM_API_KEY to a key of this server)")
    if code == "model_not_found":
        return ModelNotFound(message)
    if 400 <= status < 500:
        return InvalidRequest(message, code=code)
    return InferloomError(message, code=code)


# --- opening --------------------------------------------------------------------------------------------------------


def connect(url: str | None = None) -> Session | None:
    """The server at `url`, INFERLOOM_URL or the default address; None where nothing answers at the default one.

    An address that was named must answer: otherwise `NoServer` is raised.
    """
    named = url or os.environ.get("INFERLOOM_URL")
    transport = HttpTransport(named or DEFAULT_URL, api_key=os.environ.get("INFERLOOM_API_KEY"))
    session = Session(transport)
    try:
        session._get("/v1/models")
    except NoServer:
        if named:
            raise
        return None
    return session


@contextmanager
def open_session(url: str | None, model: str | None) -> Iterator[Session]:
    """The running server, else the models of the user's configuration (or `model` itself), started here."""
    session = connect(url)
    if session is not None:
        yield session
        return
    from inferloom.cli.fetch import fetch, missing
    from inferloom.cli.standalone import choose

    config = choose(model)
    print(
        f"no server answers at {DEFAULT_URL}: starting {config.model[0].name} for this command",
        file=sys.stderr,
    )
    fetch(missing(config))
    with start(config) as session:
        yield session


@contextmanager
def start(config: Config) -> Iterator[Session]:
    """Serve `config` inside this process, without a socket, for as long as the context lasts."""
    from inferloom.catalog.catalog import Catalog
    from inferloom.gateway.access import api_keys
    from inferloom.gateway.app import build_app
    from inferloom.worker.pool import WorkerPool

    key = next(iter(api_keys(config.server)), None)  # those of the environment hold here too
    with asyncio.Runner() as runner:
        pool = WorkerPool.for_config(config)
        catalog = Catalog(config, pool)

        async def open_all() -> None:
            await pool.start()
            await catalog.start()

        async def close_all() -> None:
            await catalog.close()
            await pool.stop()

        runner.run(open_all())
        try:
            yield Session(AppTransport(build_app(catalog, config), runner, api_key=key), own=True)
        finally:
            runner.run(close_all())
