"""`inferloom doctor`: what this machine offers, which kernels run on it, and what would make it faster."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from inferloom import __version__
from inferloom.cli.advice import Served, advice
from inferloom.cli.machine import Limits, Machine, look
from inferloom.cli.options import Url
from inferloom.cli.session import connect


def doctor(
    url: Url = None,
    quick: Annotated[bool, typer.Option("--quick", help="Measure nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tell what this machine offers, which kernels are in use, and what would make it faster.

    Memory bandwidth and arithmetic are measured (two seconds, best on an idle machine). Models of the running server are looked at, too.
    """
    machine = look(measure=not quick)
    session = connect(url)
    served = [msgspec.convert(card, Served) for card in session.cards()] if session is not None else []
    advised = advice(machine, served)
    if as_json:
        report = {"version": __version__, "machine": machine, "models": served, "advice": advised}
        typer.echo(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
        return
    typer.echo("\n".join([f"inferloom {__version__}", *described(machine), *_models(machine, served)]))
    typer.echo("")
    for sentence in advised or ["Nothing to improve was found."]:
        typer.echo(f"- {sentence}")


def described(machine: Machine) -> list[str]:
    """Lines of a name and a value."""
    rows = [
        ("processor", f"{machine.processor} ({machine.architecture}), {machine.threads} threads"),
        ("memory", f"{machine.memory_available / 2**30:.1f} of {machine.memory / 2**30:.1f} GiB available"),
        ("huge pages", machine.huge_pages),
        ("features", " ".join(machine.features) or "unknown without the native operators"),
        ("kernels", machine.kernels or "torch (reference)"),
        ("torch", f"{machine.torch or 'not installed'}, " + _devices(machine)),
    ]
    if machine.limits is not None:
        rows += _measured(machine.limits, machine.threads)
    return [f"  {name:<18}{value}" for name, value in rows]


def _devices(machine: Machine) -> str:
    if machine.cuda is None:
        return "CPU build"
    return f"CUDA {machine.cuda}, {machine.cuda_devices} devices"


def _measured(limits: Limits, threads: int) -> list[tuple[str, str]]:
    read = limits.read_bytes_per_second
    bf16 = f"{limits.bfloat16_per_second / 1e9:,.0f} bf16, " if limits.bfloat16_per_second else ""
    return [
        (
            "memory read",
            f"{read / 1e9:.1f} GB/s ({limits.read_bytes_per_second_alone / 1e9:.1f} with one thread)",
        ),
        (
            "arithmetic",
            f"{limits.int8_per_second / 1e9:,.0f} int8, {bf16}{limits.float32_per_second / 1e9:,.0f} float32, in billions of "
            "operations/s",
        ),
        ("barrier", f"{limits.barrier_seconds * 1e9:,.0f} ns among {threads} threads"),
        ("so decoding", f"at most {read / 1e9:.0f} tokens/s for each GB of weights that a token reads"),
    ]


def _models(machine: Machine, served: list[Served]) -> list[str]:
    lines = []
    for model in served:
        if not model.weight_bytes:
            continue
        facts = [model.executor or "", f"{model.weight_bytes / 1e6:,.0f} MB"]
        if machine.limits is not None and model.kind == "generate":
            facts.append(
                f"at most {machine.limits.read_bytes_per_second / model.read_bytes:,.0f} tokens/s for one user"
            )
        lines.append(f"  {model.id:<18}{', '.join(fact for fact in facts if fact)}")
    return ["", "models of the running server", *lines] if lines else []
