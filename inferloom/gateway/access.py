"""Who may ask: API keys, or loopback peers with a loopback `Host` where there are none."""

from __future__ import annotations

import hmac
import ipaddress
import os
from collections.abc import Iterable
from pathlib import Path

from inferloom.config.schema import ServerConfig
from inferloom.errors import ConfigError, Forbidden, InferloomError, Unauthorized

OPEN_PATHS = frozenset({"/health", "/ready"})  # for probes, which carry no key
KNOWN = 256  # pairs of peer and Host that need no second look
KNOWN_LENGTH = 64  # bytes of the longest Host among them


class Access:
    """Decides on plain values; `None` means yes."""

    def __init__(self, keys: Iterable[str], *, insecure: bool) -> None:
        self._keys = tuple(key.encode() for key in keys)
        self._insecure = insecure
        self._known: set[tuple[str | None, bytes]] = set()  # peers and hosts that were found to be local

    @classmethod
    def from_config(cls, server: ServerConfig) -> Access:
        """Keys of the configuration, of `INFERLOOM_API_KEYS` (comma-separated) and of `INFERLOOM_API_KEYS_FILE`."""
        return cls(api_keys(server), insecure=server.insecure)

    @property
    def asks_for_keys(self) -> bool:
        return bool(self._keys)

    def take(self, server: ServerConfig) -> None:
        """Ask for other keys from now on."""
        self._keys = tuple(key.encode() for key in api_keys(server))
        self._insecure = server.insecure
        self._known.clear()

    def refusal(
        self,
        *,
        path: str,
        peer: str | None,
        headers: Iterable[tuple[bytes, bytes]],
    ) -> InferloomError | None:
        """Why this request is not answered. `peer`: the client's address, None for a Unix socket."""
        if self._keys:
            return None if path in OPEN_PATHS else self._judge_key(headers)
        if self._insecure:
            return None
        host = next((value for key, value in headers if key == b"host"), b"")
        if (peer, host) in self._known:
            return None
        if peer is not None and not is_loopback(peer):
            return Forbidden(
                "This server has no API keys and answers this machine only. Set INFERLOOM_API_KEYS, or start it with --insecure."
            )
        if not is_loopback(host_name(host.decode("latin-1"))):
            return Forbidden(
                "This server has no API keys and answers requests to localhost only; the Host header names something else."
            )
        if len(host) <= KNOWN_LENGTH and len(self._known) < KNOWN:
            self._known.add((peer, host))
        return None

    def _judge_key(self, headers: Iterable[tuple[bytes, bytes]]) -> InferloomError | None:
        given = next((value for key, value in headers if key == b"authorization"), None)
        if given is None:
            return Unauthorized("No API key was given: send `Authorization: Bearer KEY`.")
        scheme, _, key = given.partition(b" ")
        if scheme.lower() != b"bearer":
            return Unauthorized("The Authorization header must be `Bearer KEY`.")
        key = key.strip()
        found = False
        for known in self._keys:  # every key is compared, so that time tells nothing
            found |= hmac.compare_digest(key, known)
        return None if found else Unauthorized("The API key is not one of this server's.")


def api_keys(server: ServerConfig) -> list[str]:
    """Every key a client may present. Raises `ConfigError` for a file of keys that cannot be read or holds none."""
    from_environment = [key.strip() for key in os.environ.get("INFERLOOM_API_KEYS", "").split(",")]
    return [key for key in (*server.api_keys, *from_environment, *_keys_of_file()) if key]


def _keys_of_file() -> list[str]:
    """One key a line, as a mounted secret has it; lines that begin with # are comments."""
    path = os.environ.get("INFERLOOM_API_KEYS_FILE")
    if not path:
        return []
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"INFERLOOM_API_KEYS_FILE: {path} cannot be read: {reason}") from None
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:  # whoever names a file means to have keys
        raise ConfigError(f"INFERLOOM_API_KEYS_FILE: {path} holds no key; write one a line")
    return keys


def check_binding(server: ServerConfig) -> None:
    """Raise `ConfigError` where the server would answer strangers without asking for a key."""
    if is_loopback(server.host) or server.insecure or api_keys(server):
        return
    raise ConfigError(
        f"listening on {server.host} without API keys would let anybody use the models: set INFERLOOM_API_KEYS "
        "or [server] api_keys, or say --insecure (insecure = true) if that is meant"
    )


def host_name(host: str) -> str:
    """The name in a `Host` header, without port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def is_loopback(host: str) -> bool:
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
