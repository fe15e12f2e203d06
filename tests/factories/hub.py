"""A stand-in hub: a local HTTP server that speaks the part of the hub's protocol its library downloads with."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    """Files by revision name; `commit` ids are made of the files' contents."""

    revisions: dict[str, dict[str, bytes]]
    gated: bool = False
    private: bool = False
    broken: int | None = None  # this status is the answer to everything
    metadata: bool = True  # whether sizes and hashes are told

    def commit(self, revision: str) -> str | None:
        for name, files in self.revisions.items():
            digest = hashlib.sha1(name.encode())
            for path in sorted(files):
                digest.update(path.encode() + files[path])
            if revision in (name, digest.hexdigest()):
                return digest.hexdigest()
        return None

    def files(self, revision: str) -> dict[str, bytes] | None:
        for name, files in self.revisions.items():
            if revision in (name, self.commit(name)):
                return files
        return None


@dataclass
class Fault:
    """What becomes of one request for a file's content."""

    after: int | None = None  # the connection breaks when so many bytes of the answer were sent
    stalls: threading.Event | None = None  # it stays silent there instead, until this is set
    status: int | None = None  # this is the answer, without a content
    short: bool = False  # the answer ends in good order after `after` bytes, and says that was all
    changed: bool = False  # one byte of the content is another
    whole: bool = False  # Range is not known: everything is sent


@dataclass
class Hub:
    """The running server. `downloads` are the paths whose contents were asked for, in order, `offsets` where from;
    `faults` are used up by the requests for a path, one each."""

    repositories: dict[str, Repository]
    token: str = "hf_right"
    url: str = ""
    downloads: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    stalled: threading.Event = field(default_factory=threading.Event)

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """The environment of a process that uses this hub with its caches under `home`."""
        kept = {
            key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGINGFACE_"))
        }
        ours = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home / "hf"),
            "INFERLOOM_CACHE": str(home / "cache"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1,localhost",
        }
        return {**kept, **ours, **more}

    def prepare(self, source: str, home: Path, *arguments: str, **more: str) -> dict[str, Any]:
        """The last line that `python -m inferloom.formats.prepare` says about `source`."""
        done = subprocess.run(
            [sys.executable, "-m", "inferloom.formats.prepare", source, *arguments],
            env=self.environment(home, **more),
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert done.stdout, done.stderr
        last: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        assert done.returncode == (0 if "checkpoint" in last else 1), done.stderr
        return last


@contextmanager
def running(repositories: dict[str, Repository]) -> Iterator[Hub]:
    """Serve `repositories` on a free port of this machine."""
    hub = Hub(repositories)

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


LARGE = (".safetensors", ".gguf", ".bin")  # kept outside of git, and handed out by another address


def oid(data: bytes) -> str:
    """The id of git's object with that content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        return

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if parts[:2] == ["api", "models"]:
            repo, rest = "/".join(parts[2:4]), parts[4:]
        else:
            repo, rest = "/".join(parts[:2]), parts[2:]
        repository = self.hub.repositories.get(repo)
        if repository is not None and repository.broken:
            return self._send(repository.broken, b"broken", body=body)
        signed = urlsplit(self.path).query == "signed"  # the address of large files, which needs no token
        allowed = signed or self.headers.get("authorization") == f"Bearer {self.hub.token}"
        if repository is None or (repository.private and not allowed):
            return self._refuse(404, "RepoNotFound", body=body)
        revision = rest[1] if len(rest) > 1 else "main"
        files = repository.files(revision)
        if files is None:
            return self._refuse(404, "RevisionNotFound", body=body)
        commit = repository.commit(revision)
        if rest[:1] == ["tree"]:
            listing = [
                {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for path, data in sorted(files.items())
            ]
            return self._send(200, json.dumps(listing).encode(), body=body)
        if rest[:1] != ["resolve"]:
            siblings = [self._sibling(path, data, repository) for path, data in sorted(files.items())]
            info = {
                "id": repo,
                "modelId": repo,
                "sha": commit,
                "siblings": siblings,
                "tags": [],
                "private": False,
            }
            return self._send(200, json.dumps(info).encode(), body=body)
        if repository.gated and not allowed:
            return self._refuse(403, "GatedRepo", body=body)
        path = "/".join(rest[2:])
        if path not in files:
            return self._refuse(404, "EntryNotFound", body=body)
        data = files[path]
        headers = {"X-Repo-Commit": str(commit)}
        if not path.endswith(LARGE):
            return self._content(path, data, {**headers, "ETag": f'"{oid(data)}"'}, body=body)
        if signed:
            return self._content(path, data, {"ETag": '"of-the-cdn"'}, body=body)
        headers |= {
            "X-Linked-ETag": f'"{sha256(data)}"',
            "X-Linked-Size": str(len(data)),
            "Location": f"{self.hub.url.replace('127.0.0.1', 'localhost')}{self.path}?signed",
        }
        self._send(302, b"", headers, body=body)
        return None

    def _sibling(self, path: str, data: bytes, repository: Repository) -> dict[str, Any]:
        if not repository.metadata:
            return {"rfilename": path}
        sibling = {"rfilename": path, "size": len(data), "blobId": oid(data)}
        if path.endswith(LARGE):
            sibling["blobId"] = oid(b"a pointer")
            sibling["lfs"] = {"size": len(data), "sha256": sha256(data), "pointerSize": 134}
        return sibling

    def _content(self, path: str, data: bytes, headers: dict[str, str], *, body: bool) -> None:
        if not body:
            return self._send(200, data, headers, body=False)
        faults = self.hub.faults.get(path)
        fault = faults.pop(0) if faults else Fault()
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and not fault.whole else 0
        self.hub.downloads.append(path)
        self.hub.offsets.append(start)
        if fault.status is not None:
            return self._send(fault.status, b"busy", {"Retry-After": "0"}, body=True)
        if start and start >= len(data):
            return self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"}, body=True)
        rest = data[start:]
        if fault.changed:
            rest = bytes([rest[0] ^ 1]) + rest[1:]
        if fault.short:
            rest = rest[: fault.after]
        status = 200
        if start:
            status, headers = 206, {**headers, "Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        if fault.after is None or fault.short:
            return self._send(status, rest, headers, body=True)
        self.close_connection = True
        self._send(status, rest, headers, body=False)
        self.wfile.write(rest[: fault.after])
        self.wfile.flush()
        if fault.stalls is not None:
            self.hub.stalled.set()
            fault.stalls.wait(60)
        return None

    def _refuse(self, status: int, code: str, *, body: bool) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code}, body=body)

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None, *, body: bool) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)
