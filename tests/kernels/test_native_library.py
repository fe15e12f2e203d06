"""Loading the extension: which instruction set runs, what it is linked with, what is said where it is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from inferloom.errors import ConfigError
from inferloom.kernels.native import library

ISAS = ("portable", "avx2", "avx512", "avx512_vnni_bf16")


def run(code: str, **environment: str) -> str:
    answer = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    return answer.stdout.strip()


def test_the_widest_instruction_set_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INFERLOOM_ISA", raising=False)
    available = library.load().isas()
    assert available == [name for name in ISAS if name in available]
    assert available[0] == "portable"
    assert library.isa() == available[-1]
    assert available[-1] in library.describe()


def test_the_environment_forces_an_instruction_set(isa: str) -> None:
    code = "from inferloom.kernels.native import library; print(library.isa())"
    assert run(code, INFERLOOM_ISA=isa) == isa


def test_an_unknown_instruction_set_is_an_error_that_names_what_there_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("INFERLOOM_ISA", "sse2")
    with pytest.raises(
        ConfigError, match=r"INFERLOOM_ISA=sse2 names no instruction set; there are: portable"
    ):
        library.isa()


@pytest.mark.parametrize(
    "order", ["import torch; {}", "{}; import torch"], ids=["after torch", "before torch"]
)
def test_one_openmp_runtime_serves_torch_and_the_operators(order: str) -> None:
    code = (
        order.format("from inferloom.kernels.native import library; native = library.load()")
        + """
x = torch.randn(256, 256) @ torch.randn(256, 256)
assert native.region_latency(2, 3) > 0
with open("/proc/self/maps") as maps:
    files = {line.split()[-1] for line in maps if "/" in line}
print(*sorted(file for file in files if "libgomp" in file or "libiomp" in file or "libomp" in file), sep="\\n")
"""
    )
    assert len(run(code).splitlines()) == 1


def test_the_extension_asks_for_gomp_by_the_name_that_torch_uses() -> None:
    dynamic = subprocess.run(
        ["readelf", "-d", str(library.load().__file__)], capture_output=True, text=True, check=True
    ).stdout
    needed = [line.split("[")[1].split("]")[0] for line in dynamic.splitlines() if "(NEEDED)" in line]
    assert "libgomp.so.1" in needed
    assert not [name for name in needed if "torch" in name or "python" in name]


def test_a_runtime_that_torch_brought_under_another_name_is_used(tmp_path: Path) -> None:
    original = run("""
import ctypes
ctypes.CDLL("libgomp.so.1")
print(next(line.split()[-1] for line in open("/proc/self/maps") if "libgomp" in line))
""")
    renamed = tmp_path / "libgomp-a.so"
    renamed.write_bytes(Path(original).read_bytes().replace(b"libgomp.so.1\0", b"libgomp-a.so\0"))
    code = f"""
import ctypes
ctypes.CDLL({str(renamed)!r}).omp_set_num_threads(7)
from inferloom.kernels.native import library
print(library.load().max_threads())
"""
    assert run(code) == "7"


def test_without_the_extension_everything_says_so() -> None:
    code = """
import sys
sys.modules["inferloom.kernels.native._native"] = None
from inferloom.errors import ConfigError
from inferloom.kernels.native import library
assert not library.available()
assert "install g++" in library.reason(), library.reason()
assert library.describe() == library.reason()
try:
    library.load()
except ConfigError as error:
    print(error)
"""
    assert "the native operators were not built" in run(code)


def test_what_the_machine_can_do_is_measured() -> None:
    native = library.load()
    rates = native.memory_bandwidth(1 << 24, 2, 3)
    assert len(rates) == 3 and min(rates) > 1e8
    assert native.peak(0, 1, 0.01) > 1e8
    assert native.peak(2, 2, 0.01) > 1e8
    assert (native.peak(1, 1, 0.01) > 0) == ("avx512_bf16" in native.cpu_features())
    assert 0 < native.barrier_latency(2, 100) < 1
    assert 0 < native.region_latency(2, 100) < 1
    with pytest.raises(ValueError, match="threads must be"):
        native.memory_bandwidth(1 << 20, 0, 1)
    with pytest.raises(ValueError, match="kind must be"):
        native.peak(3, 1, 0.01)
