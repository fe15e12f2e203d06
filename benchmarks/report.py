"""What a row's figures amount to: a table, the ratio to the best peer, and a verdict."""

from __future__ import annotations

from dataclasses import dataclass, field

from bandwidth import Bandwidth
from figures import Figures, table
from rows import BANDWIDTH_SHARE, Row

FAST = 42  # GB/s: of the memory beside which the goals were set


@dataclass
class Result:
    """The figures of one run of a row. `ours` is None where our side did not start."""

    row: Row
    ours: str | None
    peers: list[str]
    notes: list[str] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)
    memory: list[float] = field(default_factory=list)  # GB/s
    shares: list[float] = field(default_factory=list)  # of them, that our reading of weights took

    @property
    def names(self) -> list[str]:
        return [*([self.ours] if self.ours else []), *self.peers]

    def add(self, name: str, value: float, bandwidth: Bandwidth | None = None) -> None:
        """One more repeat, of all contenders in step, so that those of one number are a pair. `bandwidth`: the memory's,
        measured beside it. A share is of the best of its reads, which is what `inferloom doctor` says."""
        self.values.setdefault(name, []).append(value)
        if bandwidth is not None and self.row.weights is not None:
            self.memory.append(bandwidth.median)
            self.shares.append(value * self.row.weights() / 1e9 / bandwidth.best)

    def text(self) -> str:
        lines = [f"### {self.row.name}", "", self._table(), ""]
        lines.append(f"{self.row.name}: {self._outcome()}")
        if self.shares:
            percent = Figures([share * 100 for share in self.shares]).text()
            goal = f"; goal {BANDWIDTH_SHARE:.0%}" if self.row.name == "bf16-decode" else ""
            lines.append(f"of the memory's bandwidth, {percent} % read weights for us{goal}")
            lines.append(f"the memory beside our turns: {Figures(self.memory).text()} GB/s")
            lines += self._by_memory()
        return "\n".join([*lines, *self.notes])

    def _by_memory(self) -> list[str]:
        """The ratio to each peer apart for the turns in slow and in fast memory, where there were both: a neighbour on the
        machine decides which it is, and who waits for memory is helped by more of it, who computes is not."""
        if self.ours is None:
            return []
        lines = []
        for name in self.peers:
            pairs = list(zip(self.values[self.ours], self.values[name], self.memory, strict=True))
            for label, wanted in ((f"below {FAST} GB/s", False), (f"from {FAST} GB/s on", True)):
                ratios = [mine / theirs for mine, theirs, memory in pairs if (memory >= FAST) is wanted]
                if ratios and len(ratios) < len(pairs):
                    lines.append(
                        f"with the memory {label}: {Figures(ratios).text(2)} × {name}, {len(ratios)} turns"
                    )
        return lines

    def _table(self) -> str:
        unit = "tok/s" if self.row.is_ratio else "s"
        digits = 1 if self.row.is_ratio else 3
        rows = []
        for name in self.names:
            ratio = self._ratio(name).text(2) if name in self.peers and self.ours else ""
            rows.append([name, Figures(self.values[name]).text(digits), ratio])
        return table(["engine", f"{unit}: median (quartiles)", "we, as a multiple of it"], rows)

    def _ratio(self, peer: str) -> Figures:
        assert self.ours is not None
        pairs = zip(self.values[self.ours], self.values[peer], strict=True)
        return Figures([mine / theirs for mine, theirs in pairs])

    def _outcome(self) -> str:
        floor, goal = self.row.floor, self.row.goal
        if self.ours is None:
            return "no verdict, our side did not start (the reason was printed)"
        if not self.row.is_ratio:
            found, unit, digits, beside = Figures(self.values[self.ours]), "s", 3, ""
        elif not self.peers:
            return "no verdict, no peer started"
        else:
            best = max(self.peers, key=lambda name: Figures(self.values[name]).median)
            found, unit, digits, beside = self._ratio(best), "×", 2, f" {best}"
        return f"{found.text(digits)} {unit}{beside}; floor {floor:g}, goal {goal:g}: {verdict(found, floor, goal)}"


def verdict(found: Figures, floor: float, goal: float) -> str:
    """`found` against floor and goal, of which the goal is the smaller one where less is better."""
    low, high = found.quartiles
    if low < goal < high:
        return "undecided, the quartiles lie on both sides of the goal"
    better = (lambda value, mark: value >= mark) if goal > floor else (lambda value, mark: value <= mark)
    if better(found.median, goal):
        return "goal reached"
    unsure = " (the quartiles lie on both sides of the floor)" if low < floor < high else ""
    return ("between floor and goal" if better(found.median, floor) else "below the floor") + unsure
