"""Rotary position embedding: frequencies for each scaling a checkpoint may name, and their cos/sin tables.

Semantics are those of `transformers` 5 (`modeling_rope_utils`): "default", "linear", "dynamic" (NTK scaling, which
changes nothing up to max_position_embeddings; longer contexts are refused, because their keys would depend on when
they were written), "yarn" (https://huggingface.co/papers/2309.00071), "llama3" and "longrope"
(https://huggingface.co/papers/2402.13753). Anything else is refused by name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from inferloom.errors import InvalidFormat, Unsupported

KINDS = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """How positions turn. Lengths are in tokens.

    The first `dim` elements of a head turn (all of them, or a part: partial rotary), element i together with element
    i + dim / 2; the others stay as they are.
    """

    theta: float
    dim: int
    max_positions: int
    kind: str = "default"
    factor: float = 1.0
    original_max_positions: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = True
    short_factors: tuple[float, ...] = ()  # longrope: what each frequency is divided by in short contexts,
    long_factors: tuple[float, ...] = ()  # and in contexts longer than original_max_positions
    long: bool = False  # which of the two are in force

    @classmethod
    def from_config(
        cls,
        config: dict[str, Any],
        *,
        head_dim: int,
        max_positions: int,
        theta: float,
        partial: float | None = None,
        given: dict[str, Any] | None = None,
    ) -> RopeSpec:
        """From `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before it), or from `given`
        in place of both.

        `theta` is the family's own default, `partial` its share of a head that turns where the configuration names none
        (None: a family that turns whole heads only). Raises `Unsupported` for a kind not listed above, `InvalidFormat`
        for a missing or unusable number.
        """
        if given is None:
            given = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if not isinstance(given, dict):
            raise InvalidFormat(f"config.json: the rope parameters must be an object, not {given!r}")
        nested = [key for key, value in given.items() if isinstance(value, dict)]
        if nested:
            raise Unsupported("a rope per kind of layer", f"config.json names {', '.join(nested)}")
        kind = given.get("rope_type") or given.get("type") or "default"
        if kind not in KINDS:
            raise Unsupported(f"rope scaling {kind!r}", f"this engine knows {', '.join(KINDS)}")
        share = given.get("partial_rotary_factor", config.get("partial_rotary_factor"))
        share = float(share or partial or 1.0)
        if partial is None and share != 1.0:
            raise Unsupported("partial_rotary_factor", "this family turns whole heads only")
        dim = int(head_dim * share)
        if not 0 < dim <= head_dim or dim % 2:
            raise InvalidFormat(
                f"config.json: the part of a head that turns must be even, not {dim} of {head_dim}"
            )
        base = given.get("rope_theta", config.get("rope_theta"))
        base = theta if base is None else float(base)
        # Phi-3 names it beside the rope parameters, and means that where both are there.
        original = config.get("original_max_position_embeddings") or given.get(
            "original_max_position_embeddings"
        )
        if kind == "default":
            return cls(theta=base, dim=dim, max_positions=max_positions)
        if kind == "longrope":
            length = int(original or max_positions)
            return cls(
                theta=base,
                dim=dim,
                max_positions=max_positions,
                kind=kind,
                original_max_positions=length,
                attention_factor=_longrope_attention_factor(given, max_positions, length),
                short_factors=cls._factors(given, "short_factor", dim),
                long_factors=cls._factors(given, "long_factor", dim),
                long=max_positions > length,
            )
        factor = cls._number(given, "factor", kind)
        if kind == "llama3":
            return cls(
                theta=base,
                dim=dim,
                max_positions=max_positions,
                kind=kind,
                factor=factor,
                original_max_positions=int(original or max_positions),
                low_freq_factor=cls._number(given, "low_freq_factor", kind),
                high_freq_factor=cls._number(given, "high_freq_factor", kind),
            )
        if kind == "yarn":
            return cls(
                theta=base,
                dim=dim,
                max_positions=max_positions,
                kind=kind,
                factor=factor,
                original_max_positions=int(original or max_positions),
                beta_fast=float(given.get("beta_fast") or 32),
                beta_slow=float(given.get("beta_slow") or 1),
                attention_factor=_yarn_attention_factor(given, factor),
                truncate=bool(given.get("truncate", True)),
            )
        return cls(theta=base, dim=dim, max_positions=max_positions, kind=kind, factor=factor)

    @staticmethod
    def _number(given: dict[str, Any], key: str, kind: str) -> float:
        value = given.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            raise InvalidFormat(f"config.json: rope scaling {kind!r} needs a positive {key}, got {value!r}")
        return float(value)

    @staticmethod
    def _factors(given: dict[str, Any], key: str, dim: int) -> tuple[float, ...]:
        values = given.get(key)
        if not isinstance(values, list) or len(values) != dim // 2:
            raise InvalidFormat(
                f"config.json: rope scaling 'longrope' needs {dim // 2} numbers as {key}, got {values!r}"
            )
        return tuple(float(value) for value in values)

    def for_context(self, length: int) -> RopeSpec:
        """The same for a model that is served with contexts of at most `length` tokens.

        LongRoPE has two sets of frequencies. Which one is in force is decided here, once for all contexts: were it to
        change while a sequence grows, its cached keys would be wrong, and a shared prefix would depend on who shares it.
        """
        if self.original_max_positions is None or not self.long_factors:
            return self
        return replace(self, long=length > self.original_max_positions)

    def frequencies(self) -> torch.Tensor:
        """float32 [dim / 2], radians per token."""
        plain = _plain(self.theta, self.dim)
        if self.kind == "linear":
            return plain / self.factor
        if self.kind == "llama3":
            return self._llama3(plain)
        if self.kind == "yarn":
            return self._yarn()
        if self.kind == "longrope":
            factors = torch.tensor(self.long_factors if self.long else self.short_factors)
            powers = self.theta ** (torch.arange(0, self.dim, 2, dtype=torch.int64).float() / self.dim)
            return 1.0 / (factors * powers)
        return plain

    def _llama3(self, plain: torch.Tensor) -> torch.Tensor:
        assert self.original_max_positions is not None
        length = self.original_max_positions
        wavelength = 2 * math.pi / plain
        slowed = torch.where(wavelength > length / self.low_freq_factor, plain / self.factor, plain)
        smooth = (length / wavelength - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        between = ~(wavelength < length / self.high_freq_factor) & ~(
            wavelength > length / self.low_freq_factor
        )
        return torch.where(between, (1 - smooth) * slowed / self.factor + smooth * slowed, slowed)

    def _yarn(self) -> torch.Tensor:
        assert self.original_max_positions is not None

        def dimension(rotations: float) -> float:
            turns = self.original_max_positions / (rotations * 2 * math.pi)  # type: ignore[operator]
            return self.dim * math.log(turns) / (2 * math.log(self.theta))

        low, high = dimension(self.beta_fast), dimension(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, self.dim - 1)
        if low == high:
            high += 0.001
        ramp = ((torch.arange(self.dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
        powers = self.theta ** (torch.arange(0, self.dim, 2, dtype=torch.float32) / self.dim)
        return (1.0 / (self.factor * powers)) * ramp + (1.0 / powers) * (1 - ramp)


def _plain(theta: float, dim: int) -> torch.Tensor:
    return 1.0 / (theta ** (torch.arange(0, dim, 2, dtype=torch.int64).float() / dim))


def _yarn_attention_factor(given: dict[str, Any], factor: float) -> float:
    if given.get("attention_factor") is not None:
        return float(given["attention_factor"])

    def scale(mscale: float = 1.0) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    one, all_dim = given.get("mscale"), given.get("mscale_all_dim")
    return scale(one) / scale(all_dim) if one and all_dim else scale()


def _longrope_attention_factor(given: dict[str, Any], max_positions: int, original: int) -> float:
    if given.get("attention_factor") is not None:
        return float(given["attention_factor"])
    factor = float(given.get("factor") or max_positions / original)
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))


class RopeTables:
    """cos and signed sin of positions, in the compute dtype, grown on demand.

    The second half of each row repeats the first (rotate-half layout); the sine's first half is negated, so that
    `x * cos + roll(x, dim / 2) * sin` is the whole rotation of the elements that turn.
    """

    def __init__(self, spec: RopeSpec, *, dtype: torch.dtype, device: torch.device) -> None:
        self._spec = spec
        self._dtype = dtype
        self._device = device
        self._length = 0
        self._cos = self._sin = torch.empty(0)

    def at(self, positions: torch.Tensor, *, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and signed sin [T, 1, dim] for int64 `positions` [T]; `longest` is at least their maximum + 1."""
        if longest > self._length:
            self._grow(max(longest, 2 * self._length, 256))
        return self._cos.index_select(0, positions).unsqueeze(1), self._sin.index_select(
            0, positions
        ).unsqueeze(1)

    def _grow(self, length: int) -> None:
        angles = torch.outer(torch.arange(length, dtype=torch.float32), self._spec.frequencies())
        cos, sin = angles.cos() * self._spec.attention_factor, angles.sin() * self._spec.attention_factor
        self._cos = torch.cat((cos, cos), dim=1).to(self._device, self._dtype)
        self._sin = torch.cat((-sin, sin), dim=1).to(self._device, self._dtype)
        self._length = length
