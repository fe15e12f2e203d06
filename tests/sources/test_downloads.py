"""Downloads over connections that break, from hubs that are busy, into caches that others use at the same time."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from factories.hub import Fault, Hub, Repository, oid, running, sha256

WEIGHTS = bytes(range(256)) * 12_000  # 3 MB
FILES = {
    "config.json": b"{}",
    "tokenizer.json": b'{"t": 1}',
    "tokenizer_config.json": b'{"c": 1}',
    "model.safetensors": WEIGHTS,
    "notes.md": b"read me",
}
NAME = "model.safetensors"


@pytest.fixture
def hub() -> Iterator[Hub]:
    repositories = {
        "o/m": Repository({"main": FILES}),
        "o/untold": Repository({"main": FILES}, metadata=False),
        "o/twins": Repository({"main": {**FILES, "special_tokens_map.json": b"{}"}}),
    }
    with running(repositories) as server:
        yield server


def cache(home: Path, repo: str = "o/m") -> Path:
    return home / "hf" / "hub" / f"models--{repo.replace('/', '--')}"


def weights(hub: Hub, home: Path, repo: str = "o/m", **more: str) -> bytes:
    checkpoint = hub.prepare(repo, home, **more)["checkpoint"]
    return Path(checkpoint["weights"][0]).read_bytes()


def refusal(hub: Hub, home: Path, repo: str = "o/m") -> str:
    return str(hub.prepare(repo, home)["error"]["message"])


def ran(script: str, hub: Hub, home: Path) -> subprocess.CompletedProcess[str]:
    """A process of its own, which may change what it imports."""
    return subprocess.run(
        [sys.executable, "-c", script],
        env=hub.environment(home),
        capture_output=True,
        text=True,
        timeout=90,
    )


def offsets(hub: Hub) -> list[int]:
    """Where the requests for the weights began."""
    return [at for name, at in zip(hub.downloads, hub.offsets, strict=True) if name == NAME]


def left_in(home: Path, name: str | None = None) -> list[Path]:
    """What is unfinished of one file, or of all: others come beside it, and are stopped with it."""
    key = "" if name is None else sha256(WEIGHTS) if name == NAME else oid(FILES[name])
    return [path for path in (cache(home) / "blobs").glob(f"{key}*incomplete") if path.stat().st_size]


@pytest.mark.parametrize("repo", ["o/m", "o/untold"])
def test_a_connection_that_breaks_in_the_middle_is_taken_up_where_it_broke(
    hub: Hub, tmp_path: Path, repo: str
) -> None:
    hub.faults[NAME] = [Fault(after=1_000_000), Fault(after=500_000)]
    assert weights(hub, tmp_path, repo) == WEIGHTS
    first, second, third = offsets(hub)
    assert first == 0 and 0 < second <= 1_000_000 and second < third <= 1_500_000
    assert left_in(tmp_path) == []


def test_the_cache_is_the_hubs_own_and_its_library_finds_everything(hub: Hub, tmp_path: Path) -> None:
    weights(hub, tmp_path)
    program = "import huggingface_hub as h; print(h.hf_hub_download('o/m', 'model.safetensors'))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=hub.environment(tmp_path, HF_HUB_OFFLINE="1"),
        capture_output=True,
        text=True,
    )
    path = Path(done.stdout.strip())
    assert path.resolve() == (cache(tmp_path) / "blobs" / sha256(WEIGHTS)).resolve(), done.stderr
    assert path.is_symlink() and not path.readlink().is_absolute()


def test_a_hub_that_does_not_know_ranges_sends_everything_again(hub: Hub, tmp_path: Path) -> None:
    hub.faults[NAME] = [Fault(after=1_000_000), Fault(whole=True)]
    assert weights(hub, tmp_path) == WEIGHTS
    assert len(offsets(hub)) == 2


def test_an_answer_that_ends_early_in_good_order_is_not_taken_for_the_file(hub: Hub, tmp_path: Path) -> None:
    hub.faults[NAME] = [Fault(after=1_000_000, short=True)]
    assert weights(hub, tmp_path) == WEIGHTS
    assert offsets(hub) == [0, 1_000_000]


def test_a_hub_that_falls_silent_is_asked_again(hub: Hub, tmp_path: Path) -> None:
    release = threading.Event()
    hub.faults[NAME] = [Fault(after=1_000_000, stalls=release)]
    try:
        assert weights(hub, tmp_path, HF_HUB_DOWNLOAD_TIMEOUT="1") == WEIGHTS
    finally:
        release.set()
    assert offsets(hub)[0] == 0 and offsets(hub)[1] > 0


def test_files_of_the_same_content_are_one_blob(hub: Hub, tmp_path: Path) -> None:
    assert weights(hub, tmp_path, "o/twins") == WEIGHTS
    (snapshot,) = (cache(tmp_path, "o/twins") / "snapshots").iterdir()
    twins = [(snapshot / name).resolve() for name in ("config.json", "special_tokens_map.json")]
    assert twins[0] == twins[1] and twins[0].read_bytes() == b"{}"


def test_a_link_that_leads_nowhere_is_mended(hub: Hub, tmp_path: Path) -> None:
    weights(hub, tmp_path)
    (cache(tmp_path) / "blobs" / sha256(WEIGHTS)).unlink()
    assert weights(hub, tmp_path) == WEIGHTS


def test_a_blob_of_another_size_is_not_used(hub: Hub, tmp_path: Path) -> None:
    blob = cache(tmp_path) / "blobs" / sha256(WEIGHTS)
    blob.parent.mkdir(parents=True)
    blob.write_bytes(WEIGHTS[:-1])
    assert weights(hub, tmp_path) == WEIGHTS


def test_a_busy_hub_is_asked_again(hub: Hub, tmp_path: Path) -> None:
    hub.faults[NAME] = [Fault(status=503), Fault(status=429)]
    assert weights(hub, tmp_path) == WEIGHTS


@pytest.mark.parametrize("name", [NAME, "tokenizer.json"])
def test_content_with_another_hash_is_thrown_away_with_the_reason(
    hub: Hub, tmp_path: Path, name: str
) -> None:
    hub.faults[name] = [Fault(changed=True)]
    said = refusal(hub, tmp_path)
    kind = "the SHA-256" if name == NAME else "the git object id"
    assert said.startswith(f"checksum mismatch: {name} of o/m has {kind} ")
    assert said.endswith("; the download was damaged or replaced, and was thrown away; try again.")
    assert left_in(tmp_path, name) == []
    assert weights(hub, tmp_path) == WEIGHTS  # nothing of it is left in the way


def test_what_was_put_together_wrongly_is_begun_again_once(hub: Hub, tmp_path: Path) -> None:
    hub.faults[NAME] = [Fault(after=1_000_000, changed=True)]
    assert weights(hub, tmp_path) == WEIGHTS
    assert offsets(hub)[-1] == 0


def test_a_download_that_was_killed_goes_on_with_the_next_call(hub: Hub, tmp_path: Path) -> None:
    release = threading.Event()
    hub.faults[NAME] = [Fault(after=2_000_000, stalls=release)]
    command = [sys.executable, "-m", "inferloom.formats.prepare", "o/m"]
    with subprocess.Popen(
        command, env=hub.environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert hub.stalled.wait(60)
        wait_for_bytes(tmp_path, 1 << 20)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)
    release.set()
    (partial,) = left_in(tmp_path, NAME)
    kept = partial.stat().st_size
    assert weights(hub, tmp_path) == WEIGHTS
    assert offsets(hub) == [0, kept]


def test_two_processes_that_download_the_same_do_so_once(hub: Hub, tmp_path: Path) -> None:
    release = threading.Event()
    hub.faults[NAME] = [Fault(after=2_000_000, stalls=release)]
    command = [sys.executable, "-m", "inferloom.formats.prepare", "o/m"]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            command, env=hub.environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    with start() as first:
        assert hub.stalled.wait(60)
        with start() as second:
            assert second.stdout is not None
            assert any("another process is downloading model.safetensors" in line for line in second.stdout)
            release.set()
            for process in (first, second):
                process.communicate(timeout=60)
            assert (first.returncode, second.returncode) == (0, 0)
    assert offsets(hub)[0] == 0 and offsets(hub).count(0) == 1
    assert weights(hub, tmp_path) == WEIGHTS


def wait_for_bytes(home: Path, count: int) -> None:
    """Until the unfinished file has `count` bytes: what was sent is written a moment later."""
    pace = threading.Event()
    for _ in range(3000):
        if any(path.stat().st_size >= count for path in left_in(home)):
            return
        pace.wait(0.01)
    raise AssertionError("nothing arrived")


GIVES_UP = """
import sys
from pathlib import Path
from inferloom.errors import SourceError
from inferloom.sources import transfer
from inferloom.sources.unfinished import RemoteFile, Traffic

class Loud(Traffic):
    def waits(self, why):
        print(why)
    def pause(self, seconds):
        print("pause", seconds)

folder, commit = Path(sys.argv[1]), sys.argv[2]
file = RemoteFile(repo="o/m", commit=commit, name="model.safetensors", size=3_072_000)
try:
    transfer.download(file, folder, Loud(), pauses=(0.0, 1.0, 2.0))
except SourceError as error:
    print(error.message)
"""


def test_attempts_without_a_new_byte_are_spaced_and_come_to_an_end(hub: Hub, tmp_path: Path) -> None:
    hub.faults[NAME] = [Fault(after=1_500_000), *[Fault(after=0)] * 4]
    commit = hub.repositories["o/m"].commit("main")
    done = subprocess.run(
        [sys.executable, "-c", GIVES_UP, str(cache(tmp_path)), str(commit)],
        env=hub.environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=90,
    )
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("pause")] == ["pause 0.0", "pause 1.0", "pause 2.0"]
    assert "attempt 3 of 3 in 2 s" in lines[-3]
    assert "the connection to the hub was lost 4 times in a row while o/m was downloaded" in lines[-1]
    assert lines[-1].endswith("that arrived are kept. Run the same command again to go on.")
    assert left_in(tmp_path, NAME)[0].stat().st_size > 0


LARGE = """
import sys
from inferloom.formats.prepare import main
from inferloom.sources import transfer

transfer.LARGEST_OVER_HTTP = 1_000_000
sys.exit(main(["o/m"]))
"""


@pytest.mark.parametrize("changed", [False, True])
def test_what_is_too_large_for_http_comes_by_the_hubs_library_and_is_checked_all_the_same(
    hub: Hub, tmp_path: Path, changed: bool
) -> None:
    hub.faults[NAME] = [Fault(changed=changed)]
    done = ran(LARGE, hub, tmp_path)
    assert "too large for HTTP: the hub's library downloads it" in done.stdout
    last = json.loads(done.stdout.splitlines()[-1])
    if changed:
        assert "checksum mismatch: model.safetensors of o/m has the SHA-256" in last["error"]["message"]
        assert weights(hub, tmp_path) == WEIGHTS
    else:
        assert Path(last["checkpoint"]["weights"][0]).read_bytes() == WEIGHTS


FULL = """
import errno, os, sys
from inferloom.formats.prepare import main

def full(descriptor, piece, offset):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

os.pwrite = full
sys.exit(main(["o/m"]))
"""


def test_a_disk_that_is_full_is_one_sentence(hub: Hub, tmp_path: Path) -> None:
    done = ran(FULL, hub, tmp_path)
    said = json.loads(done.stdout.splitlines()[-1])["error"]["message"]
    assert said.startswith("the disk is full: o/m does not fit under") and "HF_HOME" in said
    assert "\n" not in said


def test_a_cache_that_cannot_be_written_is_one_sentence(hub: Hub, tmp_path: Path) -> None:
    cache(tmp_path).parent.mkdir(parents=True)
    cache(tmp_path).write_text("in the way")
    said = refusal(hub, tmp_path)
    assert said.startswith("o/m cannot be written to") and "\n" not in said
