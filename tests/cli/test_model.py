"""`inferloom model list|download|remove` as a user runs them, against a hub of their own."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from cli.conftest import served
from cli.standin import StandIn
from factories.hub import Fault, Hub, Repository, running

WEIGHTS = bytes(range(256)) * 12_000  # 3 MB
FILES = {
    "config.json": b'{"architectures": ["LlamaForCausalLM"]}',
    "tokenizer.json": b'{"t": 1}',
    "tokenizer_config.json": b'{"c": 1}',
    "model.safetensors": WEIGHTS,
    "onnx/model.onnx": b"onnx",
    "README.md": b"read me",
}
CONFIG = """
[[model]]
name = "mine"
source = "org/m@v2"
[model.driver]
type = "native"
device = ["cpu"]
"""


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    repository = Repository({"main": FILES, "v2": {**FILES, "README.md": b"again"}})
    with running(
        {"org/m": repository, "org/small": repository, "org/gated": Repository({"main": FILES}, gated=True)}
    ) as server:
        yield server


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "inferloom.cli.app", "model", *arguments]


def environment(hub: Hub, home: Path, **more: str) -> dict[str, str]:
    kept = hub.environment(home, INFERLOOM_HOME=str(home / "home"), **more)
    return {"INFERLOOM_URL": "http://127.0.0.1:1", **kept}


def run(hub: Hub, home: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        env=environment(hub, home, **more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
    )


def cache(home: Path) -> Path:
    return home / "hf" / "hub" / "models--org--m"


def test_an_empty_cache_is_said_with_its_place(hub: Hub, tmp_path: Path) -> None:
    done = run(hub, tmp_path, "list")
    assert done.stdout == f"(no models in cache)\n\n{tmp_path}/hf/hub\n"
    assert run(hub, tmp_path, "list", "--json").stdout == "[]\n"


def test_what_was_downloaded_is_listed_with_size_revision_use_and_users(hub: Hub, tmp_path: Path) -> None:
    done = run(hub, tmp_path, "download", "org/m", "--revision", "v2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"org/m is ready: 3 MB of weights in {cache(tmp_path)}/snapshots/")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "config.toml").write_text(CONFIG)
    title, row, _, total = run(hub, tmp_path, "list").stdout.splitlines()
    assert title.split("  ")[0] == "NAME" and title.endswith("USED BY")
    commit = str(hub.repositories["org/m"].commit("v2"))
    assert re.split("  +", row) == ["org/m", "3 MB", f"v2 ({commit[:7]})", "just now", "mine"]
    assert total == f"3 MB; the hub's cache is {tmp_path}/hf/hub"
    (listed,) = json.loads(run(hub, tmp_path, "list", "--json").stdout)
    assert listed["id"] == "org/m" and listed["complete"] and listed["used_by"] == ["mine"]
    assert listed["architecture"] == "LlamaForCausalLM" and listed["bytes"] > len(WEIGHTS)


def test_all_is_every_file_of_the_repository(hub: Hub, tmp_path: Path) -> None:
    run(hub, tmp_path, "download", "org/m")
    (snapshot,) = (cache(tmp_path) / "snapshots").iterdir()
    assert not (snapshot / "README.md").exists()
    done = run(hub, tmp_path, "download", "org/m", "--all", "--json")
    assert json.loads(done.stdout)["folder"] == str(snapshot), done.stderr
    assert {str(path.relative_to(snapshot)) for path in snapshot.rglob("*") if path.is_file()} == set(FILES)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("org/missing",), 1, "the hub has no repository 'org/missing' that you may see"),
        (("org/m", "--revision", "v9"), 1, "org/m has no revision 'v9'; name a branch, a tag or a commit."),
        (("org/m@v2", "--revision", "v2"), 2, "org/m@v2 names a revision already"),
        (("org/gated",), 1, "org/gated is gated: accept its licence at"),
        (("nosuchname",), 2, "'nosuchname' is neither an existing path, nor a short name"),
        (("smollm2", "--all"), 2, "--all is for a repository of the hub as a whole"),
    ],
)
def test_what_cannot_be_downloaded_is_one_sentence(
    hub: Hub, tmp_path: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    done = run(hub, tmp_path, "download", *arguments)
    assert done.returncode == code
    assert f"error: {says}" in done.stderr and "Traceback" not in done.stderr


def test_a_lost_connection_is_said_and_taken_up(hub: Hub, tmp_path: Path) -> None:
    hub.faults["model.safetensors"] = [Fault(after=1_000_000)]
    done = run(hub, tmp_path, "download", "org/m")
    assert done.returncode == 0
    assert "connection lost (" in done.stderr and "attempt 1 of 6 now\n" in done.stderr


def test_ctrl_c_keeps_what_arrived_and_the_next_call_goes_on(hub: Hub, tmp_path: Path) -> None:
    release = threading.Event()
    hub.stalled.clear()
    hub.faults["model.safetensors"] = [Fault(after=2_000_000, stalls=release)]
    with subprocess.Popen(
        command("download", "org/m"),
        env=environment(hub, tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert hub.stalled.wait(60)
        pace = threading.Event()
        while not any(path.stat().st_size > 1 << 20 for path in (cache(tmp_path) / "blobs").iterdir()):
            assert process.poll() is None and not pace.wait(0.01)
        listed = run(hub, tmp_path, "list").stdout
        refused = run(hub, tmp_path, "remove", "org/m", "--yes")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    release.set()
    assert process.returncode == 130
    assert (
        "what arrived of a hub repository is kept; run it again to go on" in said and "Traceback" not in said
    )
    assert "MB, incomplete" in listed
    assert (refused.returncode, "org/m is being downloaded by another process" in refused.stderr) == (1, True)
    hub.offsets.clear()
    hub.downloads.clear()
    assert run(hub, tmp_path, "download", "org/m").returncode == 0
    (began,) = [
        at for name, at in zip(hub.downloads, hub.offsets, strict=True) if name == "model.safetensors"
    ]
    assert began > 1 << 20


def test_removing_asks_on_a_terminal_and_needs_yes_elsewhere(hub: Hub, tmp_path: Path) -> None:
    run(hub, tmp_path, "download", "org/m")
    done = run(hub, tmp_path, "remove", "org/m")
    assert done.returncode == 2
    assert done.stderr == (
        "error: remove requires confirmation: run it again as `inferloom model remove org/m --yes`.\n"
    )
    assert answered(hub, tmp_path, b"n\n") == "(aborted)\n"
    assert cache(tmp_path).exists()
    assert answered(hub, tmp_path, b"y\n") == "removed org/m, 3 MB\n"
    assert not cache(tmp_path).exists()
    done = run(hub, tmp_path, "remove", "org/m", "-y")
    assert (done.returncode, "error: there is no 'org/m' in the cache" in done.stderr) == (2, True)


def answered(hub: Hub, home: Path, keys: bytes) -> str:
    """What `model remove` prints when it is answered so on a terminal."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command("remove", "org/m"),
        env=environment(hub, home),
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        os.write(ours, keys)
        out, said = process.communicate(timeout=60)
    os.close(ours)
    os.close(theirs)
    assert said == "Remove org/m (3 MB)? [y/N] "
    return out


def test_removing_with_json_says_what_is_free_again(hub: Hub, tmp_path: Path) -> None:
    run(hub, tmp_path, "download", "org/m")
    answer = json.loads(run(hub, tmp_path, "remove", "org/m", "-y", "--json").stdout)
    assert answer["id"] == "org/m" and answer["freed_bytes"] > len(WEIGHTS)


def test_what_a_worker_has_mapped_is_not_removed(hub: Hub, tmp_path: Path) -> None:
    run(hub, tmp_path, "download", "org/m")
    (weights,) = cache(tmp_path).glob("snapshots/*/model.safetensors")
    descriptor = os.open(weights, os.O_RDONLY)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)  # as workers do
        done = run(hub, tmp_path, "remove", "org/m", "--yes")
    finally:
        os.close(descriptor)
    assert (done.returncode, done.stderr) == (
        1,
        "error: org/m is in use by a model that is loaded; unload it first.\n",
    )
    assert run(hub, tmp_path, "remove", "org/m", "--yes").returncode == 0


def test_what_the_running_server_serves_is_not_removed(hub: Hub, tmp_path: Path) -> None:
    run(hub, tmp_path, "download", "org/small")
    with ExitStack() as stack:
        url = served(StandIn(), stack).url
        done = run(hub, tmp_path, "remove", "org/small", "--yes", INFERLOOM_URL=url)
    assert done.returncode == 1
    assert "org/small is served as org/small by the running server: `inferloom unload org/small` first" in (
        done.stderr
    )


def test_a_short_name_that_came_as_a_package_is_listed_and_removed(hub: Hub, tmp_path: Path) -> None:
    code = "from inferloom.sources import packages, reference as r; print(packages._home(r.parse('smollm2').ref))"
    home = subprocess.run(
        [sys.executable, "-c", code], env=environment(hub, tmp_path), capture_output=True, text=True
    ).stdout.strip()
    Path(home).mkdir(parents=True)
    (Path(home) / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"GGUF" * 500_000)
    (row,) = json.loads(run(hub, tmp_path, "list", "--json").stdout)
    assert (row["id"], row["revisions"], row["bytes"]) == ("smollm2", ["0.1.2"], 2_000_000)
    assert run(hub, tmp_path, "remove", "smollm2", "-y").stdout == "removed smollm2, 2 MB\n"
    assert not Path(home).exists()
