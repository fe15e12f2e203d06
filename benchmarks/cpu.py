"""One row of the table of CPU figures: us and that row's best peers, in one run, interleaved.

    python benchmarks/cpu.py bf16-decode [--repeats 5]     # or several rows, one after the other
    python benchmarks/cpu.py curve                         # time per step over batch and context, as SVG too
    python benchmarks/cpu.py memory                        # resident memory of everybody
    python benchmarks/cpu.py --list

docs/benchmarks.md says what each row is. Let nothing else run meanwhile.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import curve
import footprint
from bandwidth import Bandwidth, Probe
from figures import machine
from peers import llamacpp
from peers.contender import THREADS, Contender
from peers.pool import Pool, note
from priority import own_session, raise_priority
from report import Result
from rows import TARGETS, Row, row

OTHERS = {"curve": curve.run, "memory": footprint.run}


def main() -> None:
    names = [*TARGETS, *OTHERS]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", metavar="ROW")
    parser.add_argument("--repeats", type=int, help="default: 5 to 15, by the row")
    parser.add_argument("--list", action="store_true", help="print the rows with their floors and goals")
    given = parser.parse_args()
    if given.list or not given.rows:
        for name in names:
            floor, goal = TARGETS.get(name, (0, 0))
            print(f"{name:18}" + (f"floor {floor:g}, goal {goal:g}" if goal else ""))
        return
    for name in given.rows:
        if name not in names:
            parser.error(f"no row is called {name!r}; the rows are {', '.join(names)}")
    own_session()
    print(f"{machine()}, {THREADS} threads, {raise_priority()}, load {os.getloadavg()[0]:.2f}\n", flush=True)
    rows = [row(name) for name in given.rows if name in TARGETS]
    with Pool() as pool, Probe() as memory:
        for name in given.rows:
            if name in OTHERS:
                print(OTHERS[name](), flush=True)
            else:
                current = rows.pop(0)
                print(compare(current, pool, memory, repeats=given.repeats or current.repeats), flush=True)
                pool.keep_only({starts for later in rows for starts in later.contenders})
            print(flush=True)


def compare(row: Row, pool: Pool, memory: Probe, *, repeats: int) -> str:
    """Run one row; its report as Markdown."""
    draw = random.Random(0)
    ours, *peers = [pool.started(start) for start in row.contenders]
    running = [contender for contender in (ours, *peers) if contender is not None]
    result = Result(row, ours.name if ours else None, [peer.name for peer in peers if peer is not None])

    def measure(contender: Contender) -> float:
        contender.share_priority()
        with pool.quiet(but=contender):
            return row.measure(contender, draw)

    def bandwidth() -> Bandwidth:
        with pool.quiet():
            return memory.measure()

    for contender in running:
        measure(contender)  # warms up
    before = bandwidth()
    for repeat in range(repeats):
        # Turned round each time, so that a drift of the machine falls on both sides.
        for contender in running if repeat % 2 == 0 else reversed(running):
            beside = bandwidth() if row.weights and contender is ours else None
            value = measure(contender)
            result.add(contender.name, value, beside)
            note(f"{row.name}, round {repeat + 1}: {contender.name} {value:.4g}")
    result.notes.append(f"memory before and after: {before}, {bandwidth()}")
    if any(name.startswith("llama.cpp") for name in result.names):
        result.notes.append(llamacpp.build())
    return result.text()


if __name__ == "__main__":
    main()
