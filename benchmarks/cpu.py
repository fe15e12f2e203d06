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
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import bandwidth
import curve
import footprint
from figures import machine
from peers import llamacpp
from peers.contender import THREADS, Contender, quiet
from priority import own_session, raise_priority
from report import Result
from rows import TARGETS, Row, Start, row

OTHERS = {"curve": curve.run, "memory": footprint.run}


def main() -> None:
    names = [*TARGETS, *OTHERS]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", metavar="ROW")
    parser.add_argument("--repeats", type=int, default=5)
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
    for name in given.rows:
        print(OTHERS[name]() if name in OTHERS else compare(row(name), repeats=given.repeats), flush=True)
        print(flush=True)


def compare(row: Row, *, repeats: int) -> str:
    """Run one row; its report as Markdown."""
    draw = random.Random(0)
    with ExitStack() as stack:
        ours, *peers = [started(stack, start) for start in (row.ours, *row.peers)]
        running = [contender for contender in (ours, *peers) if contender is not None]
        if not running:
            return f"### {row.name}\n\nnobody started"
        result = Result(row, ours.name if ours else None, [peer.name for peer in peers if peer is not None])
        for contender in running:  # the first round warms up
            row.measure(contender, draw)
        spinning = {contender.name for contender in running if contender.spins()}
        for contender in running:
            if contender.name in spinning:
                note(f"{contender.name} spins while nothing is asked: stopped while others are timed")
        result.bandwidths.append(probe(running, spinning))
        for repeat in range(repeats):
            # Turned round each time, so that a drift of the machine falls on both sides.
            for contender in running if repeat % 2 == 0 else reversed(running):
                with quiet([other for other in running if other is not contender], spinning):
                    value = row.measure(contender, draw)
                result.add(contender.name, value)
                note(f"{row.name}, round {repeat + 1}: {contender.name} {value:.4g}")
        result.bandwidths.append(probe(running, spinning))
    if any(name.startswith("llama.cpp") for name in result.names):
        result.notes.append(llamacpp.build())
    return result.text()


def started(stack: ExitStack, start: Start) -> Contender | None:
    """A contender that answers; None, with the reason on stderr, if it cannot."""
    try:
        contender = start()
        note(f"starting {contender.name}")
        stack.enter_context(contender)
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        note(f"not compared: {error}")
        return None
    note(f"{contender.name} answers after {contender.load_seconds:.1f} s")
    return contender


def probe(running: list[Contender], spinning: set[str]) -> bandwidth.Bandwidth:
    """The bandwidth while all contenders are quiet."""
    with quiet(running, spinning):
        return bandwidth.measure()


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
