from __future__ import annotations

import json
import subprocess
import sys

import msgspec
import pytest

from inferloom.cli.advice import Served, advice
from inferloom.cli.machine import Machine

QUIET = Machine(
    processor="a processor",
    architecture="x86_64",
    threads=8,
    memory=16 << 30,
    memory_available=12 << 30,
    swap_used=0,
    load=0.1,
    huge_pages="madvise",
    features=["avx2"],
    kernels="avx2",
    available=["portable", "avx2"],
    torch="2.13.0",
)


def test_a_quiet_machine_with_native_kernels_needs_nothing() -> None:
    assert advice(QUIET) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"kernels": None, "kernels_reason": "no compiler"},
            "no compiler. Until then every model runs on torch",
        ),
        ({"kernels": "portable"}, "INFERLOOM_ISA forces portable; this processor also runs avx2"),
        ({"swap_used": 1 << 30}, "1.0 GiB of memory are swapped out"),
        ({"load": 7.5}, "Other work keeps 7.5 of 8 processors busy"),
        ({"huge_pages": "never"}, "Transparent huge pages are off"),
        ({"cuda": "13.0"}, "built for CUDA 13.0, and there is no device"),
    ],
)
def test_what_holds_a_machine_back_is_said(change: dict[str, object], said: str) -> None:
    (sentence,) = advice(msgspec.structs.replace(QUIET, **change))
    assert said in sentence


def test_large_float_weights_are_worth_quantising_and_small_or_quantised_ones_not() -> None:
    large = Served(id="m", executor="native (avx2)", dtype="bfloat16", weight_bytes=2 << 30, kind="generate")
    (sentence,) = advice(QUIET, [large])
    assert 'm reads 2.15 GB for every token: quantization = "int8"' in sentence
    for change in ({"weight_bytes": 1 << 20}, {"quantization": "int8"}, {"kind": "embed"}):
        assert advice(QUIET, [msgspec.structs.replace(large, **change)]) == []


@pytest.mark.parametrize(
    "executor",
    [
        "reference (torch): float32 arithmetic",
        "operator by operator (avx2): the native step knows no mixture of experts",
        "transformers: no family of its own",
    ],
)
def test_a_model_that_the_native_step_does_not_run_is_named_with_the_reason(executor: str) -> None:
    slow = Served(id="m", executor=executor, kind="generate")
    assert advice(QUIET, [slow]) == [f"m is slower than the native step would be: {executor}."]


def test_what_a_token_reads_counts_not_all_there_is() -> None:
    model = Served(
        id="m",
        executor="native",
        dtype="bfloat16",
        weight_bytes=4 << 30,
        token_bytes=3 << 30,
        kind="generate",
    )
    (sentence,) = advice(QUIET, [model])
    assert "m reads 3.22 GB for every token" in sentence


def test_the_command_tells_kernels_and_measures_nothing_when_quick() -> None:
    command = [sys.executable, "-m", "inferloom", "doctor", "--quick", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    machine = json.loads(done.stdout)["machine"]
    assert machine["limits"] is None
    assert machine["kernels"] is None or machine["kernels"] in machine["available"]
    assert machine["threads"] >= 1 and machine["torch"].startswith("2.")


def test_a_missing_extension_is_told_with_what_to_do() -> None:
    code = (
        'import sys; sys.modules["inferloom.kernels.native._native"] = None; '
        'from inferloom.cli.app import main; main(["doctor"])'
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "torch (reference)" in done.stdout
    assert "- the native operators were not built: install g++ 12 or newer" in done.stdout
    assert "memory read" not in done.stdout  # the extension measures that


def test_an_instruction_set_that_is_not_there_is_refused_by_name() -> None:
    command = [sys.executable, "-m", "inferloom", "doctor", "--quick"]
    environment = {"INFERLOOM_ISA": "mmx", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode != 0 and "mmx" in done.stderr
