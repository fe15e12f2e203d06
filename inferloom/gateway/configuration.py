"""The configuration's file while the server runs: what has changed in it, and what it takes to have that hold.

Only the file that the server was started with is read; no configuration is ever taken from a request.
"""

from __future__ import annotations

import asyncio
import logging

import msgspec

from inferloom.config.difference import KeyChange, differences
from inferloom.config.file import ConfigFile
from inferloom.config.quantities import budgets
from inferloom.config.schema import Config, ServerConfig
from inferloom.errors import ConfigError, Conflict, Forbidden, InferloomError
from inferloom.gateway import log
from inferloom.gateway.access import api_keys, check_binding, is_loopback
from inferloom.gateway.call import Call
from inferloom.gateway.service import Service
from inferloom.gateway.wire.configuration import ConfigApplied, ConfigPlan, ConfigRow
from inferloom.runners.budget import ram_bytes

logger = logging.getLogger("inferloom.configuration")
Stamp = tuple[int, int, int]


class Configuration:
    """What was read of the file last, and the way from there to what is in it now. Used from one event loop."""

    def __init__(self, service: Service, file: ConfigFile, started: Config) -> None:
        """`started`: what the server was started with, as the file and the flags said it."""
        self._service = service
        self.file = file
        self._holds = started  # what holds, of what the file said: run-time changes are not in it
        self._turn = asyncio.Lock()

    async def plan(self) -> list[KeyChange]:
        """What of the file does not hold yet. Raises `ConfigError` for a file that is wrong."""
        return differences(self._holds, await self._read())

    async def apply(self) -> tuple[list[KeyChange], dict[str, InferloomError]]:
        """Have what is in the file hold, as far as that goes without a restart: what differs, and the models for which it
        failed. A wrong file raises `ConfigError` and changes nothing."""
        async with self._turn:
            try:
                wanted = await self._read()
            except ConfigError as error:
                logger.error("the configuration is wrong, nothing has changed: %s", error.message)
                self._service.events.read("refused", error.message)
                raise
            found = differences(self._holds, wanted)
            if not found:
                return [], {}
            self._now(wanted, {one.key for one in found if one.effect == "now"})
            failed = await self._models(wanted)
            self._holds = _held(self._holds, wanted, found, failed)
            self._tell(found, failed)
            return found, failed

    async def _read(self) -> Config:
        config = await asyncio.to_thread(self.file.read)
        api_keys(config.server)  # those of a file that is named in the environment, too
        check_binding(config.server)
        return config

    def _now(self, wanted: Config, keys: set[str]) -> None:
        service = self._service
        for key in keys:
            section, name = key.split(".", 1)
            if section == "server" and name != "default_model":
                setattr(service.config.server, name, getattr(wanted.server, name))
        if "runtime.memory_budget" in keys:
            service.catalog.set_budget(budgets(wanted.runtime.memory_budget, ram=ram_bytes()))
        if any(key.startswith("server.") for key in keys):
            service.take_server()
            server = service.config.server
            log.set_levels(server.effective_log_level, access_log=server.access_log)

    async def _models(self, wanted: Config) -> dict[str, InferloomError]:
        from inferloom.catalog.changes import apply, model_changes

        changes = model_changes(self._holds, wanted)
        default = wanted.default_model
        return await apply(self._service.catalog, changes, fallback=None if default is None else default.name)

    def _tell(self, found: list[KeyChange], failed: dict[str, InferloomError]) -> None:
        events = self._service.events
        for name in dict.fromkeys(one.model for one in found if one.model is not None):
            effects = {one.effect for one in found if one.model == name}
            if name in failed:
                logger.warning("%s is what it was: %s", name, failed[name].message)
            else:
                change = "added" if "added" in effects else "removed" if "removed" in effects else "changed"
                events.configured(name, change)  # type: ignore[arg-type]
        later = [one.key for one in found if one.effect == "restart"]
        rest = f"; the server must be started again for {', '.join(later)}" if later else ""
        count = len(found) - len(later)
        told = f"{'1 change holds' if count == 1 else f'{count} changes hold'} now{rest}"
        logger.info("%s: %s", self.file.path, told)
        events.read("applied", told)

    async def watch(self, *, seconds: float = 1.0) -> None:
        """Apply the file whenever it was written, until cancelled. It is read once it has stayed the same for `seconds`, so
        that nobody's half-written text is."""
        applied = seen = await asyncio.to_thread(_stamp, self.file)
        while True:
            await asyncio.sleep(seconds)
            before, seen = seen, await asyncio.to_thread(_stamp, self.file)
            if seen != before or seen == applied:
                continue
            applied = seen
            await self.apply_logged()

    async def apply_logged(self) -> None:
        """`apply` for whoever cannot be answered: what is wrong goes to the log and the events."""
        try:
            await self.apply()
        except ConfigError:
            return  # it is logged


def _stamp(file: ConfigFile) -> Stamp | None:
    """What tells one writing of the file from the next; None where there is none."""
    try:
        status = file.path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size


def _held(
    before: Config, wanted: Config, found: list[KeyChange], failed: dict[str, InferloomError]
) -> Config:
    """What holds after it was applied: all that is wanted but what takes a restart, and models that failed as they were."""
    server = msgspec.to_builtins(wanted.server)
    for one in found:
        if one.effect == "restart" and one.key.startswith("server."):
            name = one.key.split(".", 1)[1]
            server[name] = getattr(before.server, name)
    known = {model.name: model for model in before.model}
    models = []
    for model in wanted.model:
        if model.name not in failed:
            models.append(model)
        elif model.name in known:
            models.append(known[model.name])
    models += [known[name] for name in failed if name in known and name not in {one.name for one in models}]
    runtime = msgspec.structs.replace(before.runtime, memory_budget=wanted.runtime.memory_budget)
    return Config(
        server=msgspec.convert(server, ServerConfig),
        auth=before.auth,
        telemetry=before.telemetry,
        runtime=runtime,
        model=models,
    )


# --- over HTTP ------------------------------------------------------------------------------------------------------


async def plan(service: Service, call: Call) -> None:
    """`POST /v1/config/plan`: what of the file does not hold yet. Nothing is changed."""
    configuration = await _asked(service, call)
    found = await configuration.plan()
    rows = [_row(one) for one in found]
    await call.json(ConfigPlan(file=str(configuration.file.path), changes=rows))


async def apply(service: Service, call: Call) -> None:
    """`POST /v1/config/apply`: have it hold; answers when all that can is done."""
    configuration = await _asked(service, call)
    found, failed = await configuration.apply()
    rows = []
    for one in found:
        row = _row(one)
        error = failed.get(one.model) if one.model is not None else None
        row.error = None if error is None else error.message
        row.applied = error is None and one.effect != "restart"
        rows.append(row)
    answer = ConfigApplied(
        file=str(configuration.file.path),
        changes=rows,
        failed=sorted(failed),
        restart=[one.key for one in found if one.effect == "restart"],
    )
    await call.json(answer)


async def _asked(service: Service, call: Call) -> Configuration:
    await call.no_body()
    peer = call.scope.get("client")
    if not service.access.asks_for_keys and peer is not None and not is_loopback(peer[0]):
        raise Forbidden(
            "The configuration is for this machine alone while the server asks for no API keys: set INFERLOOM_API_KEYS."
        )
    if service.configuration is None:
        raise Conflict(
            "This server was started without a configuration file, so there is nothing to read again; "
            "`inferloom serve --config FILE` starts it with one."
        )
    return service.configuration


def _row(change: KeyChange) -> ConfigRow:
    return ConfigRow(**msgspec.structs.asdict(change))
