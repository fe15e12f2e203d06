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
class Hub:
    """The running server. `downloads` are the paths whose contents were asked for, in order."""

    repositories: dict[str, Repository]
    token: str = "hf_right"
    url: str = ""
    downloads: list[str] = field(default_factory=list)

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
            "NO_PROXY": "127.0.0.1",
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
        allowed = self.headers.get("authorization") == f"Bearer {self.hub.token}"
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
            siblings = [{"rfilename": path, "size": len(data)} for path, data in sorted(files.items())]
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
        if body:
            self.hub.downloads.append(path)
        etag = f'"{hashlib.sha1(files[path]).hexdigest()}"'
        return self._send(200, files[path], {"ETag": etag, "X-Repo-Commit": str(commit)}, body=body)

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
