"""`POST /v1/models`, `PATCH` and `DELETE /v1/models/{id}`: declared models get further names and other options; a source comes
from a request only where the operator allows it. Nothing is written to the configuration's file."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

import msgspec

from inferloom.config.changing import operators_key, with_options
from inferloom.config.schema import DriverConfig, ModelConfig
from inferloom.errors import Conflict, Forbidden, InvalidRequest, ModelNotFound, SourceError
from inferloom.gateway.call import Call
from inferloom.gateway.lifecycle import IN_MEMORY
from inferloom.gateway.models import details
from inferloom.gateway.service import Service
from inferloom.gateway.wire.changes import AddRequest, ChangedModel, ChangeRequest, RemovedModel
from inferloom.gateway.wire.decoding import BodyDecoder
from inferloom.sources.reference import parse

SOURCES = ("source", "hf_repo", "tok_model_id")  # keys that say where files are
MOST_MODELS = 1000  # that clients can bring a server to have

_additions = BodyDecoder(AddRequest)
_changes = BodyDecoder(ChangeRequest)


async def add(service: Service, call: Call) -> None:
    """Declare a model; answers with 201."""
    request, unknown = _additions.decode(await call.body())
    options = request.given()
    _refuse_unknown(unknown)
    _refuse_operators(service, options)
    catalog = service.catalog
    if len(catalog.entries()) >= MOST_MODELS:
        raise Conflict(f"There are {MOST_MODELS} models already, which is the limit; delete one first.")
    model = _beginning(service, request)
    options.setdefault("lazy", True)
    model = _checked(service, model, options, name="id")
    entry = catalog.add(model, load=not model.lazy)
    call.model = entry.id
    service.events.configured(entry.id, "added")
    await _answer(service, call, entry.id, status=201)


def _beginning(service: Service, request: AddRequest) -> ModelConfig:
    """What the options are put into: a copy of a declared model, or a model of a new source."""
    catalog = service.catalog
    taken = {name for entry in catalog.entries() for name in (entry.id, *entry.aliases)}
    if request.id in taken:
        raise Conflict(f"There is a model {request.id!r} already: PATCH changes it.", param="id")
    sources = [name for name in ("source", "hf_repo") if getattr(request, name) not in (None, msgspec.UNSET)]
    if (request.alias_of is None) == (not sources):
        raise InvalidRequest(
            "Say what the model is: `alias_of` names a declared one, `source` brings a new one; give exactly one of them.",
            param="alias_of",
        )
    if request.alias_of is None:
        return ModelConfig(name=request.id, driver=DriverConfig(type="native"))
    try:
        known = catalog.resolve(request.alias_of)
    except ModelNotFound as error:
        error.param = "alias_of"
        raise
    return msgspec.structs.replace(known.config, name=request.id, aliases=[])


async def change(service: Service, call: Call) -> None:
    """Change a model's options. What its worker depends on replaces the worker of a loaded model while that serves on; where
    that fails, the model is what it was."""
    entry, _ = service.resolve(call, _named(call))
    request, unknown = _changes.decode(await call.body())
    options = request.given()
    _refuse_unknown(unknown)
    _refuse_operators(service, options)
    catalog = service.catalog
    changed = _checked(service, entry.config, options, name="aliases")
    from inferloom.catalog.changes import differing  # with the first change: the catalog is slow to import

    keys = differing(entry.config, changed)
    await catalog.change(entry.id, **keys)
    if keys:
        service.events.configured(entry.id, "changed")
    await _answer(service, call, entry.id)


def _checked(service: Service, model: ModelConfig, options: dict[str, Any], *, name: str) -> ModelConfig:
    """`name`: the field of the request that gives names, should one be taken."""
    for key in SOURCES:
        _refuse_nowhere(key, options.get(key))
    try:
        return with_options(service.catalog.config, model, options)
    except InvalidRequest as error:
        if error.param == "name":
            error.param = name
        raise


def _refuse_nowhere(key: str, source: object) -> None:
    """A source that cannot be, or is a path to nothing, is told of now. What a hub or an index has is seen at the load."""
    if isinstance(source, str):
        try:
            parse(source)
        except SourceError as error:
            raise InvalidRequest(f"`{key}`: {error.message}", param=key) from None


async def remove(service: Service, call: Call) -> None:
    """Forget a model. Requests get it no longer; those in progress may end, and then its memory is freed."""
    name, force = _named(call), _force(call)
    entry, _ = service.resolve(call, name)
    if entry.id != name and name != "default":
        raise Conflict(
            f"{name!r} is another name of the model {entry.id!r}: delete that, or PATCH its aliases.",
            param="model",
        )
    before = service.catalog.status(entry.id)
    alone = str(before.state) in IN_MEMORY and not before.shares
    await service.catalog.remove(entry.id, force=force)
    service.events.configured(entry.id, "removed")
    freed = entry.status().freed_bytes if alone else None
    await call.json(RemovedModel(id=entry.id, freed_bytes=freed or 0))


def _named(call: Call) -> str:
    name: str = call.scope["path_params"]["model_id"]
    return name


def _force(call: Call) -> bool:
    query: bytes = call.scope.get("query_string", b"")
    force = False
    for key, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True, errors="replace"):
        if key != "force" or value not in ("true", "false"):
            raise InvalidRequest(
                "The one parameter there is: ?force=true, which ends the requests in progress.",
                param=key[:64],
            )
        force = value == "true"
    return force


def _refuse_unknown(unknown: list[str]) -> None:
    """An option that nobody knows is not dropped: the model would not be what its caller thinks."""
    if unknown:
        raise InvalidRequest(
            f"{unknown[0]!r} is no option of a model; `GET /openapi.json` has them all.", param=unknown[0]
        )


def _refuse_operators(service: Service, options: dict[str, Any]) -> None:
    key = operators_key(options)
    if key is not None and not service.config.server.allow_model_changes:
        raise Forbidden(
            f"`{key}` is the operator's to set: this server takes it from its configuration's file alone, "
            "unless [server] allow_model_changes = true.",
        )


async def _answer(service: Service, call: Call, id_: str, *, status: int = 200) -> None:
    shown = details(service, service.catalog.resolve(id_), id_)
    await call.json(ChangedModel(**msgspec.structs.asdict(shown)), status=status)
