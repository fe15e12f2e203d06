"""Random numbers without state: a number depends on (seed, choice, position) alone, so neither the batch around a
sequence nor its preemption can change what it draws."""

from __future__ import annotations

_MASK = (1 << 64) - 1


def _mix(value: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def uniform(seed: int, *, choice: int, position: int) -> float:
    """A number in [0, 1) with 48 random bits: enough for a vocabulary, and its product with a sum stays below it."""
    return (_mix(_mix(_mix(seed & _MASK) ^ choice) ^ position) >> 16) * 2.0**-48
