"""What would make a machine faster: pure, from what `machine.look` and the server say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from inferloom.cli.machine import Machine


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """A model of the running server, as far as its speed depends on it."""

    id: str
    executor: str | None = None
    quantization: str = "none"
    dtype: str | None = None
    weight_bytes: int = 0
    token_bytes: int | None = None  # of them, that one greedy token reads
    kind: str | None = None

    @property
    def read_bytes(self) -> int:
        """What a token of one user reads of the weights, or all of them where that is not known."""
        return self.token_bytes or self.weight_bytes


def advice(machine: Machine, served: Sequence[Served] = ()) -> list[str]:
    """Sentences, the most important first; empty where there is nothing to do."""
    return [*_of_the_machine(machine), *_of_models(machine, served)]


def _of_the_machine(machine: Machine) -> Iterator[str]:
    if machine.kernels is None:
        yield f"{machine.kernels_reason}. Until then every model runs on torch's operators, several times slower."
    elif machine.available and machine.kernels != machine.available[-1]:
        yield f"INFERLOOM_ISA forces {machine.kernels}; this processor also runs {machine.available[-1]}: unset it."
    elif machine.kernels == "portable":
        yield "This processor has no instruction set that the fast kernels know (AVX2 or newer): int8 and int4 gain less here."
    if machine.swap_used > 256 << 20:
        yield (
            f"{machine.swap_used / 2**30:.1f} GiB of memory are swapped out: weights that are read back from disk decode a "
            "hundred times slower. Serve fewer or smaller models, or add memory."
        )
    if machine.load > 0.5 * machine.threads + 0.5:
        yield (
            f"Other work keeps {machine.load:.1f} of {machine.threads} processors busy: models share what is left, and the "
            "figures here are low."
        )
    if machine.huge_pages == "never":
        yield (
            "Transparent huge pages are off: `echo madvise > /sys/kernel/mm/transparent_hugepage/enabled` lets KV pages and "
            "workspaces use them."
        )
    if machine.cuda is not None and machine.cuda_devices == 0:
        yield (
            f"torch {machine.torch} was built for CUDA {machine.cuda}, and there is no device: the CPU build is some GB smaller "
            "(README, Installation)."
        )


def _of_models(machine: Machine, served: Sequence[Served]) -> Iterator[str]:
    for model in served:
        if model.kind != "generate":
            continue
        if (
            model.executor is not None
            and model.executor.startswith(("reference", "transformers", "operator by operator"))
            and machine.kernels is not None
        ):
            yield f"{model.id} is slower than the native step would be: {model.executor}."
        elif (
            model.quantization == "none"
            and model.dtype in ("bfloat16", "float16")
            and _is_float(model, machine)
        ):
            yield (
                f'{model.id} reads {model.read_bytes / 1e9:.2f} GB for every token: quantization = "int8" halves that, '
                '"int4" takes about a third (docs/models.md, Quantisation).'
            )


def _is_float(model: Served, machine: Machine) -> bool:
    """Whether its weights are what limits it, and not quantised already. Small ones are fast as they are."""
    return model.weight_bytes > 512 << 20 and machine.kernels is not None
