"""What the hub's library raises, as a sentence that says what is wrong and what to do."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Any

from inferloom.errors import InferloomError, SourceError, SourceNotFound
from inferloom.sources import hub_cache
from inferloom.sources.reference import HubRef
from inferloom.sources.transfer import is_transport

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def explain(ref: HubRef, error: BaseException) -> InferloomError:
    from huggingface_hub import errors

    causes = list(_causes(error))
    full = next((cause for cause in causes if isinstance(cause, OSError) and cause.errno in _NO_ROOM), None)
    if full is not None:
        return SourceError(
            f"the disk is full: {ref.repo} does not fit under {hub_cache.hub_folder()}; what arrived is kept; "
            "make room or set HF_HOME to a larger disk."
        )
    for cause in causes:
        if isinstance(cause, errors.GatedRepoError):
            return SourceError(
                f"{ref.repo} is gated: accept its licence at {endpoint()}/{ref.repo}, make a token there, "
                "and set HF_TOKEN to it."
            )
        if isinstance(cause, errors.RepositoryNotFoundError):
            return SourceNotFound(
                f"the hub has no repository {ref.repo!r} that you may see; check the name, "
                "and set HF_TOKEN if it is a private one."
            )
        if isinstance(cause, errors.RevisionNotFoundError):
            return SourceNotFound(
                f"{ref.repo} has no revision {ref.revision!r}; name a branch, a tag or a commit."
            )
        if isinstance(cause, errors.OfflineModeIsEnabled):
            return SourceError(
                f"HF_HUB_OFFLINE is set, and {ref.repo} is not complete in the hub's cache; unset it to download what is missing."
            )
        status = _status(cause)
        if status == 401:
            return SourceError(
                f"the hub refused the token in HF_TOKEN for {ref.repo}; make a new one and set it."
            )
        if status == 403:
            return SourceError(
                f"the hub does not let the token in HF_TOKEN read {ref.repo}; ask its owner for access."
            )
        if status is not None:
            return SourceError(f"the hub answered {status} for {ref.repo}; try again later.")
    if any(is_transport(cause) for cause in causes):
        return SourceError(
            f"no network: the hub at {endpoint()} could not be reached for {ref.repo}; check the connection, the proxy "
            "settings or HF_ENDPOINT, or set HF_HUB_OFFLINE=1 if the files are here already."
        )
    for cause in causes:
        if isinstance(cause, OSError) and cause.filename:
            return SourceError(
                f"{ref.repo} cannot be written to {hub_cache.hub_folder()}: {cause.strerror or cause}; "
                "mend that, or set HF_HOME to another folder."
            )
    return SourceError(f"{ref.repo} could not be downloaded: {str(error).strip() or type(error).__name__}")


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _status(error: Any) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
