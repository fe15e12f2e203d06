"""Names of quantisations: ours, the two of checkpoints that come quantised, and mistral.rs's for in-situ quantisation."""

from __future__ import annotations

import re

from inferloom.config.problems import did_you_mean
from inferloom.errors import ConfigError

# What `quantization` may say. `none`: the weights as the checkpoint has them, which may be quantised already (GGUF, AWQ,
# GPTQ). `int4-all`: embedding and output matrix too, which `int4` leaves at 8 bits. `awq` and `gptq` say what the checkpoint
# must be.
SCHEMES = ("none", "int8", "int4", "int4-all", "awq", "gptq")
IN_SITU = ("none", "int8", "int4", "int4-all")  # what float weights can be made into

# mistral.rs's types, lower case, -> ours: the narrower of our two layouts that is at least as wide.
_ISQ = {
    **dict.fromkeys(
        ("2", "3", "4", "q2k", "q3k", "q4k", "q4_0", "q4_1", "afq2", "afq3", "afq4", "hqq4", "int4"), "int4"
    ),
    **dict.fromkeys(
        ("5", "6", "8", "q5k", "q6k", "q8k", "q5_0", "q5_1", "q8_0", "q8_1", "afq6", "afq8", "hqq8", "int8"),
        "int8",
    ),
}
_FLOATING = ("fp8", "f8q8", "f8e4m3", "mxfp4")


def scheme(name: str, *, where: str) -> str:
    """One of `SCHEMES`, from any of the names above, in any case. `where` begins the error's sentence. Raises ConfigError."""
    lower = re.sub(r"_k(_[sml])?$", "k", name.strip().lower())  # a file's Q4_K_M is the type Q4K
    if lower in SCHEMES:
        return lower
    if lower in _ISQ:
        return _ISQ[lower]
    if lower in _FLOATING:
        raise ConfigError(
            f"{where}: {name} is a floating-point format, which has no kernels here; choose int8 or int4."
        )
    raise ConfigError(
        f"{where}: there is no quantization {name!r}"
        + (did_you_mean(lower, [*SCHEMES, *_ISQ]) or f"; there are {', '.join(SCHEMES)}.")
    )
