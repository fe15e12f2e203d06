"""The admission and eviction policies on a fake clock, beside what others do: `python benchmarks/simulate.py`.

Seconds are simulated ones: the machine that runs this does not matter, and every run prints the same.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from figures import percentile, table
from simulator.machine import Machine, Outcome
from simulator.optimum import optimum
from simulator.policies import ByCount, Fifo, Ollama, Ours
from simulator.traces import KINDS, SETS, SMALL, Trace, generate, small

POLICIES = [Ours("latency"), Ours("throughput"), Fifo(), ByCount(), Ollama()]
BESIDE = 2  # whom the others are compared with: FIFO
OURS = 2  # how many of them are
MEASURES = ("makespan", "mean", "p50", "p99")
MARGIN = 1.01  # less is no loss


@dataclass(frozen=True, slots=True)
class Score:
    """One policy on one trace; seconds."""

    makespan: float
    mean: float  # of the requests' waits
    p50: float
    p99: float
    loads: int


@dataclass(frozen=True, slots=True)
class Row:
    """All policies on one trace."""

    kind: str
    seed: int
    scores: list[Score]
    least_wait: float = 0.0  # mean, of any schedule; small traces only
    least_makespan: float = 0.0


def simulate(seed: int) -> Row:
    trace = generate(seed)
    return Row(trace.kind, seed, [_score(outcome) for outcome in _outcomes(trace)])


def simulate_small(seed: int) -> Row:
    """A small trace, beside its best schedules."""
    trace = small(seed)
    outcomes = _outcomes(trace)
    wait = optimum(trace, "wait", known=min(sum(outcome.waits) for outcome in outcomes))
    makespan = optimum(trace, "makespan", known=min(outcome.makespan for outcome in outcomes))
    scores = [_score(outcome) for outcome in outcomes]
    return Row("small", seed, scores, wait / len(trace.requests), makespan)


def _outcomes(trace: Trace) -> list[Outcome]:
    return [Machine(trace, policy).run() for policy in POLICIES]


def _score(outcome: Outcome) -> Score:
    waits = outcome.waits
    return Score(
        outcome.makespan,
        statistics.fmean(waits),
        percentile(waits, 0.5),
        percentile(waits, 0.99),
        outcome.loads,
    )


def report(rows: Sequence[Row]) -> str:
    """One table, and where ours loses most."""
    titles = ["traces", "policy", "makespan", "p50 wait", "p99 wait", "loads", "mean wait, to FIFO's"]
    titles += ["worse than FIFO: makespan", "p50", "p99", "to the optimum: mean wait", "makespan"]
    lines: list[list[str]] = []
    for kind in [*KINDS, "all of these", "small"]:
        chosen = [row for row in rows if row.kind == kind or (kind == "all of these" and row.kind != "small")]
        if chosen:
            lines += [_line(kind, index, chosen) for index in range(len(POLICIES))]
    return "\n".join([table(titles, lines), "", *_losses(rows)])


def _line(kind: str, index: int, rows: Sequence[Row]) -> list[str]:
    own = [row.scores[index] for row in rows]
    beside = [row.scores[BESIDE] for row in rows]
    cells = [f"{kind} ({len(rows)})" if index == 0 else "", POLICIES[index].name]
    cells += [
        f"{statistics.median(getattr(s, name) for s in own):.1f}" for name in ("makespan", "p50", "p99")
    ]
    cells.append(f"{statistics.median(score.loads for score in own):.0f}")
    cells.append(_ratio(sum(s.mean for s in own), sum(s.mean for s in beside)))
    for name in ("makespan", "p50", "p99"):
        worse = sum(_loses(a, b, name) for a, b in zip(own, beside, strict=True))
        cells.append(f"{worse / len(rows):.0%}" if index != BESIDE else "")
    if kind == "small":
        cells.append(_ratio(sum(s.mean for s in own), sum(row.least_wait for row in rows)))
        cells.append(_ratio(sum(s.makespan for s in own), sum(row.least_makespan for row in rows)))
    else:
        cells += ["", ""]
    return cells


def _ratio(ours: float, theirs: float) -> str:
    return f"{ours / theirs:.2f}"


def _loses(own: Score, beside: Score, name: str) -> bool:
    return bool(getattr(own, name) > getattr(beside, name) * MARGIN + 1e-9)


def _losses(rows: Sequence[Row]) -> list[str]:
    """Each of our policies' greatest loss to FIFO in every measure."""
    found = []
    for index in range(OURS):
        for name in MEASURES:
            losses = [
                (getattr(row.scores[index], name) - getattr(row.scores[BESIDE], name), row)
                for row in rows
                if _loses(row.scores[index], row.scores[BESIDE], name)
            ]
            if losses:
                _, row = max(losses, key=lambda loss: (loss[0], -loss[1].seed))
                ours, theirs = getattr(row.scores[index], name), getattr(row.scores[BESIDE], name)
                found.append(
                    f"{POLICIES[index].name}: {name} worse than FIFO's in {len(losses)} of {len(rows)} traces, most in "
                    f"{row.kind} {row.seed}: {ours:.1f} s, FIFO {theirs:.1f} s"
                )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--set", choices=list(SETS), default="held-out", help="which seeds (default: held-out)"
    )
    parser.add_argument("--traces", type=int, default=1200, help="how many of them (default: all 1,200)")
    args = parser.parse_args()
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        rows = list(pool.map(simulate, SETS[args.set][: args.traces], chunksize=25))
        rows += pool.map(simulate_small, SMALL[args.set][: args.traces], chunksize=25)
    print(report(rows))


if __name__ == "__main__":
    main()
