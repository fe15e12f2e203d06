"""Who gives memory back when a model needs it: a pure function of what is resident."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from fractions import Fraction
from itertools import accumulate

import msgspec

# Over how long a model's rate of requests is believed, and how far ahead it matters (seconds).
MEMORY = 300.0
HORIZON = 60.0
# Losing all it holds as spare KV would hurt a model a fiftieth of what losing the model does: kept prefixes are
# computed again, and fewer requests fit at once.
SPARE = Fraction(1, 50)
# What one level of priority weighs: more than idleness and load times differ between models.
LEVEL = 10**9
# Above this many candidates the search gives way to the greedy choice.
EXACT = 14


class Demand:
    """How often a model is asked for: requests per second, each forgotten exponentially over the memory."""

    __slots__ = ("_at", "_weight")

    def __init__(self) -> None:
        self._weight = 0.0
        self._at = 0.0

    def note(self, now: float) -> None:
        """One more request, at `now` (seconds of any one clock that does not go backwards)."""
        self._weight = self._weight * math.exp((self._at - now) / MEMORY) + 1.0
        self._at = now

    def rate(self, now: float) -> float:
        return self._weight * math.exp((self._at - now) / MEMORY) / MEMORY


class Resident(msgspec.Struct, frozen=True, kw_only=True):
    """A model in memory, as the policies see it."""

    id: str
    device: str = "cpu"
    bytes: int  # all it holds, `shrinkable` included
    idle_secs: float = 0.0  # since its last lease ended; 0 while leased
    served_secs: float = math.inf  # since it was loaded; admission lets it work off a part of what that cost
    reload_secs: float  # measured, or estimated from its bytes
    rate: float = 0.0  # requests per second lately, see `Demand`
    priority: int = 0
    pinned: bool = False
    leased: bool = False  # or otherwise not to be ended now: it loads, it drains
    yielding: bool = False  # admission has said so and since then it gets no leases
    waiting: int = 0  # requests that wait for a place in it
    shrinkable: int = 0  # bytes of KV it can give back and go on, leased or pinned as it may be

    def expected(self) -> float:
        """Requests for it within the horizon: what was seen of them over the memory and one of doubt, thinned by the
        time that has passed without any (the mean of a Gamma posterior)."""
        return HORIZON * (self.rate * MEMORY + 1.0) / (MEMORY + self.idle_secs)

    def loss(self) -> float:
        """What its users would lose with it: seconds of reloading, times how many of them expectedly."""
        return self.reload_secs * (self.expected() + self.waiting)


class Victim(msgspec.Struct, frozen=True, kw_only=True):
    """What one resident gives up."""

    resident: Resident
    bytes: int  # that become free; of one that shrinks at least so many, whole pages are its owner's business
    ends: bool  # False: it gives back spare KV and goes on

    @property
    def id(self) -> str:
        return self.resident.id


def victims(
    residents: Sequence[Resident],
    *,
    need: int,
    free: int,
    now_excluded: Collection[str] = (),
    forced: Collection[str] = (),
    least: int = 0,
) -> list[Victim] | None:
    """The cheapest way to have `need` bytes where `free` are: who ends and who gives back spare KV.

    The residents are those of one device. Minimised is, over the sets E of ended ones and bytes x(r) taken from
    the spare KV of the others,

        Σ_{r ∈ E} loss(r) · 10⁹^level(r)  +  Σ_{r ∉ E} loss(r) / 50 · x(r) / bytes(r)

    subject to Σ_{E} bytes + Σ x ≥ need − free and x ≤ shrinkable. `loss` is reload seconds × (requests expected within
    a minute + requests waiting), `level` how many lower priorities there are among the residents. So spare KV goes
    before models, the idle before the busy, what loads quickly before what loads slowly, a lower priority before a
    higher one, and never more than is needed: every loss counts, so an optimal E has no member that could stay. Of
    equally cheap sets the one with fewer bytes, then fewer members, then the alphabetically first is taken. Pinned and
    leased residents never end, those in `now_excluded` are not touched. Up to 14 candidates the optimum is found by
    branch and bound, beyond that a greedy choice by loss per byte, from which every victim that can stay is taken back.

    Those in `forced` end whatever the bytes (their group excludes who comes), and `least` residents do at least (only so
    many may be loaded).

    Returns ended ones first, each group by name; [] where nothing has to be done; None where even all of it is not
    enough, or somebody forced cannot end.
    """
    assert len({resident.device for resident in residents}) <= 1, "the residents are those of one device"
    ordered = sorted(residents, key=lambda r: r.id)
    going = {r.id for r in ordered if r.id in forced}
    if any(r.id in going and (r.pinned or r.leased or r.id in now_excluded) for r in ordered):
        return None
    present = [r for r in ordered if r.id not in now_excluded and r.id not in going]
    shortage = max(0, need - free - sum(r.bytes for r in ordered if r.id in going))
    choice = _Choice(present, shortage=shortage, least=max(0, least - len(going)))
    ended = choice.best()
    if ended is None:
        return None
    taken = choice.taken(ended)
    return [
        *(Victim(resident=r, bytes=r.bytes, ends=True) for r in ordered if r.id in ended | going),
        *(Victim(resident=r, bytes=taken[r.id], ends=False) for r in present if r.id in taken),
    ]


Ended = frozenset[str]
Rank = tuple[int, int, int, list[str]]


class _Choice:
    """One question to the policy. Costs are whole nanoseconds, so that sums do not depend on their order."""

    def __init__(self, present: Sequence[Resident], *, shortage: int, least: int) -> None:
        self._shortage = shortage
        self._least = least
        self._residents = {r.id: r for r in present}
        self._losses = {r.id: max(1, round(r.loss() * 1e9)) for r in present}
        levels = sorted({r.priority for r in present})
        self._costs = {r.id: self._losses[r.id] * LEVEL ** levels.index(r.priority) for r in present}
        self._ranked = sorted(
            (r for r in present if not r.pinned and not r.leased and r.bytes > 0),
            key=lambda r: (Fraction(self._costs[r.id], r.bytes), r.id),
        )
        self._spare = sorted((r for r in present if r.shrinkable > 0), key=lambda r: (self._price(r), r.id))

    def best(self) -> Ended | None:
        """Who ends in the cheapest choice; None: there is no choice that is enough."""
        if self._rank(frozenset(r.id for r in self._ranked)) is None:
            return None
        greedy = self._pruned(self._greedily())
        return greedy if len(self._ranked) > EXACT else self._searched(greedy)

    def taken(self, ended: Ended) -> dict[str, int]:
        """The bytes of spare KV that the others give, cheapest first, where `ended` is not enough."""
        missing = self._shortage - self._size(ended)
        given: dict[str, int] = {}
        for resident in self._spare:
            if missing <= 0:
                break
            if resident.id not in ended:
                given[resident.id] = min(missing, resident.shrinkable)
                missing -= given[resident.id]
        return given

    def _size(self, ended: Ended) -> int:
        return sum(self._residents[id_].bytes for id_ in ended)

    def _price(self, resident: Resident) -> Fraction:
        """Of a byte of its spare KV."""
        return SPARE * self._losses[resident.id] / resident.bytes

    def _rank(self, ended: Ended) -> Rank | None:
        """What a choice is compared by; None where it does not free enough."""
        if len(ended) < self._least:
            return None
        size = self._size(ended)
        taken = self.taken(ended)
        if size + sum(taken.values()) < self._shortage:
            return None
        cost = sum(self._costs[id_] for id_ in ended)
        for id_, part in taken.items():
            resident = self._residents[id_]
            cost += self._losses[id_] * part * SPARE.numerator // (resident.bytes * SPARE.denominator)
        return cost, size, len(ended), sorted(ended)

    def _greedily(self) -> Ended:
        """The cheapest bytes first, until it is enough."""
        ended: Ended = frozenset()
        for resident in self._ranked:
            if self._rank(ended) is not None:
                break
            ended |= {resident.id}
        return ended

    def _pruned(self, ended: Ended) -> Ended:
        """Without every member that can stay, the dearest tried first; spare KV takes its
        place where it can."""
        rank = self._rank(ended)
        assert rank is not None
        for id_ in sorted(ended, key=lambda id_: (-self._costs[id_], id_)):
            without = self._rank(ended - {id_})
            if without is not None and without < rank:
                ended, rank = ended - {id_}, without
        return ended

    def _searched(self, found: Ended) -> Ended:
        """Branch and bound over who ends, in order of price. The bound: what is missing costs at least as much as
        the cheapest byte that is left, of a whole model or of spare KV."""
        ranked = self._ranked
        first = self._rank(found)
        assert first is not None
        best: Rank = first
        left = [0, *accumulate(r.bytes for r in reversed(ranked))][::-1]  # bytes of ranked[depth:]
        spare = sum(r.shrinkable for r in self._spare)
        prices = [Fraction(self._costs[r.id], r.bytes) for r in ranked]
        if self._spare:
            prices = [min(price, self._price(self._spare[0])) for price in prices]
        rounding = len(self._spare)  # each part of spare KV is rounded down to a nanosecond

        def descend(depth: int, ended: Ended, cost: int, missing: int) -> None:
            nonlocal best, found
            if missing <= spare and len(ended) >= self._least:
                rank = self._rank(ended)
                if rank is not None and rank < best:
                    best, found = rank, ended
            done = missing <= 0 and len(ended) >= self._least
            if done or depth == len(ranked) or missing > left[depth] + spare:
                return
            price = prices[depth]
            if cost + max(0, missing) * price.numerator // price.denominator > best[0] + rounding:
                return
            here = ranked[depth]
            descend(depth + 1, ended | {here.id}, cost + self._costs[here.id], missing - here.bytes)
            descend(depth + 1, ended, cost, missing)

        descend(0, frozenset(), 0, self._shortage)
        return found
