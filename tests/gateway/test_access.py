"""Who is answered: keys, loopback, CORS."""

from __future__ import annotations

import openai
import pytest

from inferloom.config.schema import ServerConfig
from inferloom.errors import ConfigError
from inferloom.gateway.access import Access, api_keys, check_binding

LOCAL = [(b"host", b"127.0.0.1:8080")]


def refusal(access: Access, *, peer: str | None = "127.0.0.1", path: str = "/v1/models", headers=LOCAL):
    found = access.refusal(path=path, peer=peer, headers=headers)
    return None if found is None else found.status


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.3.2.1", "::1", "::ffff:127.0.0.1", None])
@pytest.mark.parametrize("host", [b"localhost", b"LOCALHOST:80", b"127.0.0.1", b"[::1]:8080", b"a.localhost"])
def test_without_keys_this_machine_is_answered(peer, host):
    assert refusal(Access([], insecure=False), peer=peer, headers=[(b"host", host)]) is None


@pytest.mark.parametrize("peer", ["10.0.0.1", "192.168.1.5", "::ffff:10.0.0.1", "nonsense"])
def test_without_keys_other_machines_are_not(peer):
    assert refusal(Access([], insecure=False), peer=peer) == 403
    assert refusal(Access([], insecure=True), peer=peer) is None


@pytest.mark.parametrize(
    "host", [b"evil.example", b"127.0.0.1.evil.example", b"", b"localhost.evil.example:8080"]
)
def test_without_keys_a_host_header_of_elsewhere_is_refused(host):
    assert refusal(Access([], insecure=False), headers=[(b"host", host)]) == 403


@pytest.mark.parametrize(
    "header, status",
    [
        (b"Bearer one", None),
        (b"bearer two", None),
        (b"Bearer  two ", None),
        (b"Bearer three", 401),
        (b"Bearer ", 401),
        (b"Basic one", 401),
        (b"one", 401),
        (None, 401),
    ],
)
def test_with_keys_one_of_them_is_needed(header, status):
    headers = [*LOCAL, *([(b"authorization", header)] if header is not None else [])]
    assert refusal(Access(["one", "two"], insecure=False), headers=headers) == status


def test_with_keys_probes_are_answered_without():
    access = Access(["one"], insecure=False)
    assert refusal(access, path="/health", peer="10.0.0.1", headers=[]) is None
    assert refusal(access, path="/ready", peer="10.0.0.1", headers=[]) is None
    assert refusal(access, path="/metrics") == 401


def test_keys_come_from_the_environment_too(monkeypatch):
    monkeypatch.setenv("INFERLOOM_API_KEYS", "a, b,,")
    access = Access.from_config(ServerConfig(api_keys=["c"]))
    for key in (b"a", b"b", b"c"):
        assert refusal(access, headers=[(b"authorization", b"Bearer " + key)]) is None
    assert refusal(access, headers=[(b"authorization", b"Bearer ")]) == 401


def test_keys_come_from_a_file_too(monkeypatch, tmp_path):
    path = tmp_path / "keys"
    path.write_text("# of the team\nc\n\n d \n")
    monkeypatch.setenv("INFERLOOM_API_KEYS", "a")
    monkeypatch.setenv("INFERLOOM_API_KEYS_FILE", str(path))
    assert api_keys(ServerConfig()) == ["a", "c", "d"]


@pytest.mark.parametrize(
    "content, words",
    [
        (None, "cannot be read: No such file"),
        (b"\xff", "it is not UTF-8 text"),
        (b"# none\n", "holds no key"),
    ],
)
def test_a_file_of_keys_that_brings_none_is_an_error(monkeypatch, tmp_path, content, words):
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv("INFERLOOM_API_KEYS_FILE", str(path))
    with pytest.raises(ConfigError, match=words):
        api_keys(ServerConfig())


def test_listening_to_strangers_without_keys_is_refused(monkeypatch):
    monkeypatch.delenv("INFERLOOM_API_KEYS", raising=False)
    with pytest.raises(ConfigError, match="--insecure"):
        check_binding(ServerConfig(host="0.0.0.0"))
    check_binding(ServerConfig(host="0.0.0.0", insecure=True))
    check_binding(ServerConfig(host="0.0.0.0", api_keys=["k"]))
    check_binding(ServerConfig(host="localhost"))
    check_binding(ServerConfig(host="::1"))


async def test_the_official_client_without_the_right_key_meets_an_authentication_error(serve):
    gateway = await serve(api_keys=["right"])
    with pytest.raises(openai.AuthenticationError) as caught:
        await gateway.openai.models.list()
    assert caught.value.code == "invalid_api_key"
    assert caught.value.response.headers["www-authenticate"] == "Bearer"
    assert (await gateway.openai.with_options(api_key="right").models.list()).data


async def test_without_cors_origins_no_origin_is_allowed(gateway):
    response = await gateway.http.get("/health", headers={"origin": "http://a.example"})
    assert "access-control-allow-origin" not in response.headers


async def test_cors_origins_are_answered_and_others_not(serve):
    gateway = await serve(cors_origins=["http://a.example"], api_keys=["k"])
    preflight = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    allowed = await gateway.http.options(
        "/v1/chat/completions", headers={"origin": "http://a.example"} | preflight
    )
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == "http://a.example"
    other = await gateway.http.options(
        "/v1/chat/completions", headers={"origin": "http://b.example"} | preflight
    )
    assert "access-control-allow-origin" not in other.headers
