"""`GET /openapi.json`: what this server understands, generated from the structs that parse it."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec

from inferloom import __version__
from inferloom.gateway.call import Call
from inferloom.gateway.service import Service
from inferloom.gateway.wire.answers import ChatResponse, CompletionResponse
from inferloom.gateway.wire.changes import AddRequest, ChangedModel, ChangeRequest, RemovedModel
from inferloom.gateway.wire.chat import ChatRequest
from inferloom.gateway.wire.completions import OF_CHATS, CompletionRequest
from inferloom.gateway.wire.configuration import ConfigApplied, ConfigPlan, NoFields
from inferloom.gateway.wire.embeddings import EmbeddingRequest, EmbeddingResponse
from inferloom.gateway.wire.errors import ErrorEnvelope
from inferloom.gateway.wire.models import (
    DefaultAnswer,
    DefaultRequest,
    DetokenizeAnswer,
    DetokenizeRequest,
    Health,
    LifecycleAnswer,
    LifecycleRequest,
    LoadRequest,
    ModelDetails,
    ModelList,
    PinRequest,
    PlanAnswer,
    Readiness,
    RequantiseRequest,
    TokenizeAnswer,
    TokenizeRequest,
    UnloadRequest,
)
from inferloom.gateway.wire.sampling import REFUSED

# path, method, summary, request struct, answer struct
Operation = tuple[str, str, str, type[msgspec.Struct] | None, type[msgspec.Struct] | None]

OPERATIONS: list[Operation] = [
    ("/v1/chat/completions", "post", "Answer a chat, whole or as a stream", ChatRequest, ChatResponse),
    (
        "/v1/completions",
        "post",
        "Continue a prompt, whole or as a stream",
        CompletionRequest,
        CompletionResponse,
    ),
    ("/v1/embeddings", "post", "Embed texts", EmbeddingRequest, EmbeddingResponse),
    ("/v1/models", "get", "List the models, `default` first", None, ModelList),
    ("/v1/models/{model_id}", "get", "Show one model", None, ModelDetails),
    ("/v1/models", "post", "Declare a model until the server ends", AddRequest, ChangedModel),
    ("/v1/models/{model_id}", "patch", "Change a model until the server ends", ChangeRequest, ChangedModel),
    ("/v1/models/{model_id}", "delete", "Forget a model until the server ends", None, RemovedModel),
    ("/v1/models/load", "post", "Load a model and wait for it", LoadRequest, LifecycleAnswer),
    (
        "/v1/models/unload",
        "post",
        "Unload a model; `force` ends its streams",
        UnloadRequest,
        LifecycleAnswer,
    ),
    ("/v1/models/reload", "post", "Load a model again and wait for it", LoadRequest, LifecycleAnswer),
    ("/v1/models/status", "post", "Tell a model's state", LifecycleRequest, LifecycleAnswer),
    ("/v1/models/pin", "post", "Keep a model in memory, or let it go", PinRequest, LifecycleAnswer),
    (
        "/v1/models/plan",
        "post",
        "Tell what a load would do; nothing is changed",
        LifecycleRequest,
        PlanAnswer,
    ),
    (
        "/v1/models/default",
        "put",
        "Choose the model of requests that name none",
        DefaultRequest,
        DefaultAnswer,
    ),
    (
        "/v1/models/re_isq",
        "post",
        "Serve a model's weights in another quantisation",
        RequantiseRequest,
        LifecycleAnswer,
    ),
    ("/re_isq", "post", "mistral.rs's path of /v1/models/re_isq", RequantiseRequest, LifecycleAnswer),
    ("/v1/events", "get", "Watch the models: how each is, then every change", None, None),
    (
        "/v1/config/plan",
        "post",
        "Tell what has changed in the server's configuration file",
        NoFields,
        ConfigPlan,
    ),
    ("/v1/config/apply", "post", "Have the server's configuration file hold", NoFields, ConfigApplied),
    ("/tokenize", "post", "Token ids of a text", TokenizeRequest, TokenizeAnswer),
    ("/detokenize", "post", "Text of token ids", DetokenizeRequest, DetokenizeAnswer),
    ("/health", "get", "Whether the process answers", None, Health),
    ("/ready", "get", "Whether requests are taken", None, Readiness),
    ("/metrics", "get", "Counters in Prometheus' format", None, None),
    ("/openapi.json", "get", "This description", None, None),
]
EVENTS = "/v1/events"
STREAMED = ("/v1/chat/completions", "/v1/completions")
ERRORS = {
    "400": "the request cannot be served as written; `param` names the field",
    "401": "no API key, or not one of this server's",
    "403": "without API keys, this machine alone is answered; or a key of a model is the operator's",
    "404": "no model of that name",
    "409": "the model is in use by that name, as the default, or by others",
    "413": "the body is too large",
    "415": "the body is not JSON",
    "429": "too many requests at once; see `Retry-After`",
    "502": "the model's process died",
    "503": "the model cannot answer now; see `Retry-After`",
    "504": "a time limit was reached",
    "507": "the model does not fit into memory",
}


async def show(service: Service, call: Call) -> None:
    await call.reply(document())


@cache
def document() -> bytes:
    """The description as JSON."""
    structs = [
        struct for *_, request, answer in OPERATIONS for struct in (request, answer) if struct is not None
    ]
    _, components = msgspec.json.schema_components(
        [*structs, ErrorEnvelope], ref_template="#/components/schemas/{name}"
    )
    _tell_all(components)
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation[0], {})[operation[1]] = _operation(*operation)
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "Inferloom",
                "version": __version__,
                "description": "Many models behind OpenAI's API. Fields that change nothing here are accepted "
                "and named in the response header `x-inferloom-ignored`.",
            },
            "security": [{}, {"key": []}],
            "paths": paths,
            "components": {
                "schemas": components,
                "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            },
        }
    )


def _tell_all(components: dict[str, Any]) -> None:
    """What the types alone don't say."""
    for name, others in (("ChatRequest", ("echo",)), ("CompletionRequest", OF_CHATS)):
        properties = components[name]["properties"]
        for field in (*REFUSED, *others):
            properties[field] = {"type": "null", "default": None}
        properties["best_of"] = {"anyOf": [{"const": 1}, {"type": "null"}], "default": None}
        properties["modalities"] = {"anyOf": [{"const": ["text"]}, {"type": "null"}], "default": None}
    tokens = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
    lists = [
        {"type": "array", "items": {"type": "string"}, "minItems": 1},
        {"type": "array", "items": tokens, "minItems": 1},
        {"type": "array", "items": {"type": "array", "items": tokens, "minItems": 1}, "minItems": 1},
    ]
    components["CompletionRequest"]["properties"]["prompt"] = {"anyOf": [{"type": "string"}, *lists]}
    components["EmbeddingRequest"]["properties"]["input"] = {
        "anyOf": [{"type": "string", "minLength": 1}, *lists]
    }
    components["NoFields"]["maxProperties"] = 0
    for schema in components.values():
        if schema.get("additionalProperties") is False:
            del schema["additionalProperties"]  # unknown fields are accepted, and named in a header


def _operation(
    path: str,
    method: str,
    summary: str,
    request: type[msgspec.Struct] | None,
    answer: type[msgspec.Struct] | None,
) -> dict[str, Any]:
    created = (path, method) == ("/v1/models", "post")
    responses: dict[str, Any] = {
        "201" if created else "200": {"description": "the answer", "content": _answer_content(path, answer)}
    }
    for status, why in ERRORS.items():
        responses[status] = {"description": why, "content": _error_content(path, status)}
    found: dict[str, Any] = {
        "summary": summary,
        "operationId": _operation_id(path, method),
        "responses": responses,
    }
    if request is not None:
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref(request)}}}
    if path == EVENTS:
        found["parameters"] = [
            {
                "name": "model",
                "in": "query",
                "description": "watch these models only: ids, aliases or `default`",
                "schema": {"type": "array", "items": {"type": "string"}, "maxItems": 256},
            }
        ]
    if "{model_id}" in path:
        found["parameters"] = [
            {
                "name": "model_id",
                "in": "path",
                "required": True,
                "description": "an id, an alias or `default`; it may contain slashes",
                "schema": {"type": "string"},
            }
        ]
    if method == "delete":
        found["parameters"].append(
            {
                "name": "force",
                "in": "query",
                "description": "end the requests in progress at once",
                "schema": {"enum": ["true", "false"], "type": "string"},
            }
        )
    return found


def _answer_content(path: str, answer: type[msgspec.Struct] | None) -> dict[str, Any]:
    if path == EVENTS:
        return {"text/event-stream": {"schema": {"type": "string"}}}
    if path == "/metrics":
        return {"text/plain": {"schema": {"type": "string"}}}
    content: dict[str, Any] = {"application/json": {"schema": _ref(answer) if answer else {"type": "object"}}}
    if path in STREAMED:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    return content


def _error_content(path: str, status: str) -> dict[str, Any]:
    schemas = [_ref(ErrorEnvelope)]
    if path.startswith("/v1/models/") and "{" not in path:
        schemas.append(_ref(LifecycleAnswer))
    if path == "/ready" and status == "503":
        schemas.append(_ref(Readiness))
    return {"application/json": {"schema": schemas[0] if len(schemas) == 1 else {"anyOf": schemas}}}


def _ref(struct: type[msgspec.Struct]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{struct.__name__}"}


def _operation_id(path: str, method: str) -> str:
    words = [
        word for word in path.replace("{", "").replace("}", "").replace(".", "/").split("/") if word != "v1"
    ]
    return "_".join([method, *(word for word in words if word)])
