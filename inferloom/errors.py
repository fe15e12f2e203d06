"""The error taxonomy: raised where the fact is known, translated once at each edge (HTTP, CLI, SDK).

Every class carries what an edge needs: `status` (HTTP), `type` and `code` (OpenAI's error object) and, where a
field of the request is to blame, `param`. The message is a sentence that says what was wrong and what to do.
"""

from __future__ import annotations


class InferloomError(Exception):
    """The base of everything a user can cause or meet."""

    status: int = 500
    type: str = "server_error"
    code: str | None = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after
        if code is not None:
            self.code = code


# --- requests -------------------------------------------------------------------------------------------------------


class InvalidRequest(InferloomError):
    """The request cannot be served as written; `param` names the field."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_request"


class ContextLengthExceeded(InvalidRequest):
    """Prompt (plus the tokens asked for) is longer than the model's context."""

    code = "context_length_exceeded"


class Unsupported(InvalidRequest):
    """Something valid that this runner cannot do. It is refused, never dropped."""

    code = "unsupported"

    def __init__(self, what: str, why: str, *, param: str | None = None) -> None:
        super().__init__(f"{what} is not supported: {why}", param=param)
        self.what = what
        self.why = why


class Unauthorized(InferloomError):
    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class Forbidden(InferloomError):
    status = 403
    type = "permission_error"
    code = "forbidden"


class NotFound(InferloomError):
    status = 404
    type = "invalid_request_error"
    code = "not_found"


class ModelNotFound(NotFound):
    """No model of that name is declared."""

    code = "model_not_found"


class MethodNotAllowed(InferloomError):
    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


class Conflict(InferloomError):
    status = 409
    type = "invalid_request_error"
    code = "conflict"


class PayloadTooLarge(InferloomError):
    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class UnsupportedMediaType(InferloomError):
    status = 415
    type = "invalid_request_error"
    code = "unsupported_media_type"


class RateLimited(InferloomError):
    """The caller, or the queue in front of the model, is over its limit; comes with `Retry-After`."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


# --- models and workers ---------------------------------------------------------------------------------------------


class ModelUnavailable(InferloomError):
    """The model cannot answer now (failed load, crash back-off, shutdown); comes with `Retry-After` where known."""

    status = 503
    type = "server_error"
    code = "model_unavailable"


class LoadFailed(ModelUnavailable):
    """Loading a model failed; the message is the reason."""

    code = "model_load_failed"


class InvalidFormat(LoadFailed):
    """A checkpoint that cannot be read; the message starts with the words `invalid format`."""

    code = "invalid_format"

    def __init__(self, detail: str) -> None:
        super().__init__(f"invalid format: {detail}")


class OutOfMemory(LoadFailed):
    """It does not fit; the message starts with the words `out of memory` and holds the numbers."""

    status = 507
    code = "out_of_memory"

    def __init__(self, detail: str) -> None:
        super().__init__(f"out of memory: {detail}")


class WorkerDied(InferloomError):
    """The worker process ended while it was answering."""

    status = 502
    code = "worker_died"


class RequestTimeout(InferloomError):
    """A time limit of the configuration (queue, load, first token, whole request) or of the request was reached."""

    status = 504
    type = "timeout_error"
    code = "timeout"


class Cancelled(InferloomError):
    """The request was ended from outside: the client left, a forced unload, a shutdown."""

    status = 503
    code = "cancelled"


# --- configuration and sources --------------------------------------------------------------------------------------


class ConfigError(InferloomError):
    """The configuration cannot be used as written. The CLI prints it and exits with 2."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_config"


class SourceError(LoadFailed):
    """A model's source could not be found, fetched or checked."""

    code = "source_error"


class SourceNotFound(SourceError):
    """No such path, repository, revision, package or file; status word `no_loader_config`."""

    code = "source_not_found"
