"""Generated days of work: which requests come when, for models that do not fit at once."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

# Policies are tuned on the first set; the second is for the final figures alone.
SETS = {"tuning": range(1_000_000, 1_001_200), "held-out": range(7_000_000, 7_001_200)}
SMALL = {"tuning": range(2_000_000, 2_000_300), "held-out": range(8_000_000, 8_000_300)}


@dataclass(frozen=True, slots=True)
class Model:
    name: str
    bytes: int  # MiB here: only ratios matter
    load_secs: float


@dataclass(frozen=True, slots=True)
class Request:
    number: int
    model: str
    at: float  # seconds
    secs: float  # of work, once it has a place


@dataclass(frozen=True, slots=True)
class Trace:
    kind: str
    seed: int
    models: dict[str, Model]
    budget: int
    places: int  # requests that a model works on at once
    requests: list[Request]  # by time


def generate(seed: int) -> Trace:
    """The trace of a seed; its kind is the seed's place in the round of kinds."""
    kind = list(KINDS)[seed % len(KINDS)]
    return KINDS[kind](random.Random(f"{kind} {seed}"), kind, seed)


def small(seed: int, *, requests: int = 8) -> Trace:
    """Three models with room for one or two, and so few requests that every schedule can be tried."""
    draw = random.Random(f"small {seed}")
    models = _models(draw, 3, mixed=draw.random() < 0.5)
    sizes = sorted(model.bytes for model in models.values())
    budget = draw.choice([sizes[-1], sizes[-1] + sizes[0]])
    scale = sum(model.load_secs for model in models.values()) / 3
    names = [draw.choice(list(models)) for _ in range(requests)]
    return _trace("small", seed, models, budget, draw, _poisson(draw, names, 0.4 * scale))


def _models(draw: random.Random, count: int, *, mixed: bool) -> dict[str, Model]:
    """Sizes between 1 and 3 GiB, or where they are `mixed` between 0.1 and 12 GiB. Loads take time by the byte,
    at a speed that differs by a factor (formats, caches), and something however small the model is."""
    speed = draw.choice([500.0, 2000.0])  # MiB/s
    found = {}
    # names say nothing about the models, as those of real ones do not
    for name in draw.sample([f"model-{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"], count):
        size = round(100 * 120 ** draw.random()) if mixed else draw.randint(1000, 3000)
        found[name] = Model(name, size, 0.1 + size / speed * draw.uniform(0.7, 1.5))
    return found


def _budget(draw: random.Random, models: dict[str, Model]) -> int:
    """Room for a third to three quarters of all bytes, and for the largest model at least."""
    sizes = [model.bytes for model in models.values()]
    return max(max(sizes), round(sum(sizes) * draw.uniform(0.33, 0.75)))


def _poisson(draw: random.Random, names: list[str], gap: float) -> list[tuple[str, float]]:
    now = 0.0
    found = []
    for name in names:
        now += draw.expovariate(1 / gap)
        found.append((name, now))
    return found


def _trace(
    kind: str,
    seed: int,
    models: dict[str, Model],
    budget: int,
    draw: random.Random,
    arrivals: list[tuple[str, float]],
) -> Trace:
    typical = draw.choice([0.3, 1.5, 6.0])  # seconds of work
    requests = [
        Request(number, name, at, typical * draw.lognormvariate(0.0, 0.7))
        for number, (name, at) in enumerate(sorted(arrivals, key=lambda one: (one[1], one[0])))
    ]
    return Trace(kind, seed, models, budget, 8, requests)


def _gap(draw: random.Random, models: dict[str, Model]) -> float:
    """Between requests on average: from one to thirty of them in the time of a load."""
    load = sum(model.load_secs for model in models.values()) / len(models)
    return load / draw.choice([1.0, 3.0, 10.0, 30.0])


def _bursty(draw: random.Random, kind: str, seed: int) -> Trace:
    """Bursts of one model's requests at once, silence between."""
    models = _models(draw, draw.randint(4, 8), mixed=False)
    gap = _gap(draw, models)
    arrivals: list[tuple[str, float]] = []
    now = 0.0
    while len(arrivals) < 160:
        size = draw.randint(1, 16)
        now += draw.expovariate(1 / (gap * size))
        name = draw.choice(list(models))
        arrivals += [(name, now + draw.random() * gap) for _ in range(size)]
    return _trace(kind, seed, models, _budget(draw, models), draw, arrivals)


def _cyclic(draw: random.Random, kind: str, seed: int) -> Trace:
    """One model after the other, round and round: what the least recently used is worst at."""
    models = _models(draw, draw.randint(4, 8), mixed=False)
    names = (list(models) * 160)[:160]
    return _trace(kind, seed, models, _budget(draw, models), draw, _poisson(draw, names, _gap(draw, models)))


def _skewed(draw: random.Random, kind: str, seed: int) -> Trace:
    """A few models have most requests (Zipf's law)."""
    models = _models(draw, draw.randint(6, 12), mixed=False)
    weights = [1 / (1 + rank) ** 1.2 for rank in range(len(models))]
    names = draw.choices(list(models), weights, k=160)
    return _trace(kind, seed, models, _budget(draw, models), draw, _poisson(draw, names, _gap(draw, models)))


def _mixed(draw: random.Random, kind: str, seed: int) -> Trace:
    """Sizes over two orders of magnitude, everybody wanted alike."""
    models = _models(draw, draw.randint(4, 10), mixed=True)
    names = draw.choices(list(models), k=160)
    return _trace(kind, seed, models, _budget(draw, models), draw, _poisson(draw, names, _gap(draw, models)))


def _lone(draw: random.Random, kind: str, seed: int) -> Trace:
    """Little to do: hardly a queue, so that only the choice of the victim matters."""
    models = _models(draw, draw.randint(4, 8), mixed=draw.random() < 0.5)
    weights = [1 / (1 + rank) for rank in range(len(models))]
    load = sum(model.load_secs for model in models.values()) / len(models)
    names = draw.choices(list(models), weights, k=160)
    return _trace(kind, seed, models, _budget(draw, models), draw, _poisson(draw, names, 4 * load))


KINDS: dict[str, Callable[[random.Random, str, int], Trace]] = {
    "bursty": _bursty,
    "cyclic": _cyclic,
    "skewed": _skewed,
    "mixed sizes": _mixed,
    "light": _lone,
}
