"""What this machine is and can do at best, as `inferloom doctor` tells it. Looks and measures; judges nothing."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import msgspec

from inferloom.kernels.native import library

PROBE_BYTES = 512 << 20  # far more than a cache holds
_TORCH = "import json, torch; print(json.dumps([torch.version.cuda, torch.cuda.device_count()]))"


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Measured with all threads. Operations count a multiply-add twice."""

    read_bytes_per_second: float
    read_bytes_per_second_alone: float  # one thread
    int8_per_second: float
    bfloat16_per_second: float  # 0: the processor has no such instruction
    float32_per_second: float
    barrier_seconds: float


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    processor: str
    architecture: str
    threads: int  # that this process may use
    memory: int  # bytes
    memory_available: int
    swap_used: int
    load: float  # average of the last minute
    huge_pages: str  # always, madvise, never, unknown
    features: list[str]
    kernels: str | None  # the instruction set in use; None: there is no extension
    kernels_reason: str = ""
    available: list[str] = []  # instruction sets that could be forced
    torch: str | None = None
    cuda: str | None = None  # version torch was built for
    cuda_devices: int = 0
    limits: Limits | None = None


def look(*, measure: bool) -> Machine:
    """Everything there is to know; with `measure` it takes two seconds more. Raises ConfigError for a wrong INFERLOOM_ISA."""
    threads = len(os.sched_getaffinity(0))
    meminfo = _meminfo()
    cuda, devices = _cuda()
    native = library.load() if library.available() else None
    return Machine(
        processor=_processor(),
        architecture=platform.machine(),
        threads=threads,
        memory=meminfo.get("MemTotal", 0),
        memory_available=meminfo.get("MemAvailable", 0),
        swap_used=meminfo.get("SwapTotal", 0) - meminfo.get("SwapFree", 0),
        load=os.getloadavg()[0],
        huge_pages=_huge_pages(),
        features=list(native.cpu_features()) if native else [],
        kernels=library.isa() if native else None,
        kernels_reason=library.reason(),
        available=list(native.isas()) if native else [],
        torch=_version("torch"),
        cuda=cuda,
        cuda_devices=devices,
        limits=_limits(threads) if native and measure else None,
    )


def _limits(threads: int) -> Limits:
    native = library.load()
    alone = max(native.memory_bandwidth(PROBE_BYTES, 1, 3))
    return Limits(
        read_bytes_per_second=max(native.memory_bandwidth(PROBE_BYTES, threads, 5)),
        read_bytes_per_second_alone=alone,
        int8_per_second=native.peak(2, threads, 0.2),
        bfloat16_per_second=native.peak(1, threads, 0.2),
        float32_per_second=native.peak(0, threads, 0.2),
        barrier_seconds=native.barrier_latency(threads, 10_000),
    )


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else platform.machine()


def _meminfo() -> dict[str, int]:
    """/proc/meminfo in bytes."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    found = (re.match(r"(\w+):\s+(\d+) kB", line) for line in lines)
    return {match[1]: int(match[2]) * 1024 for match in found if match}


def _huge_pages() -> str:
    try:
        text = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(encoding="ascii")
    except OSError:
        return "unknown"
    match = re.search(r"\[(\w+)\]", text)
    return match[1] if match else "unknown"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cuda() -> tuple[str | None, int]:
    """What torch sees, asked in a process of its own: this one never imports it."""
    done = subprocess.run([sys.executable, "-c", _TORCH], capture_output=True, check=False)
    try:
        version, count = msgspec.json.decode(done.stdout, type=tuple[str | None, int])
    except msgspec.DecodeError:
        return None, 0
    return version, count
