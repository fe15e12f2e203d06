"""Stop strings: text before the first of them is visible, the rest is not, whatever the pieces it arrives in."""

from __future__ import annotations

from collections.abc import Sequence


class _Automaton:
    """Knuth-Morris-Pratt over one stop string: `state` is how much of it the text so far ends with."""

    __slots__ = ("failure", "state", "stop")

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.state = 0
        self.failure = [0] * len(stop)
        matched = 0
        for position in range(1, len(stop)):
            while matched and stop[position] != stop[matched]:
                matched = self.failure[matched - 1]
            matched += stop[position] == stop[matched]
            self.failure[position] = matched

    def feed(self, text: str) -> int:
        """Where in `text` the stop string is complete for the first time (the index after it), or -1."""
        stop, failure, state = self.stop, self.failure, self.state
        position = 0
        if not state:
            position = text.find(stop[0])
            if position < 0:
                return -1
        for index in range(position, len(text)):
            character = text[index]
            while state and character != stop[state]:
                state = failure[state - 1]
            if character == stop[state]:
                state += 1
                if state == len(stop):
                    return index + 1
        self.state = state
        return -1


class StopMatcher:
    """Watches one choice's text for stop strings.

    Text that may be the beginning of a stop string is held back until that is decided. The stop that is complete
    first ends the text (of two that end together, the longer one), so the result does not depend on how the text
    was cut. Work is linear in the text, per stop string.
    """

    __slots__ = ("_automata", "_held", "matched")

    def __init__(self, stops: Sequence[str]) -> None:
        self._automata = [_Automaton(stop) for stop in dict.fromkeys(stops) if stop]
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> tuple[str, bool]:
        """Take the next piece; give the text that is certain to be visible, and whether a stop was met.

        After a match everything is swallowed.
        """
        if not self._automata:
            return text, False
        if self.matched is not None:
            return "", True
        best: tuple[int, int] | None = None
        for automaton in self._automata:
            end = automaton.feed(text)
            if end >= 0 and (best is None or (end, -len(automaton.stop)) < best):
                best, self.matched = (end, -len(automaton.stop)), automaton.stop
        whole = self._held + text
        if best is not None:
            start = len(self._held) + best[0] + best[1]
            self._held = ""
            return whole[:start], True
        keep = max(automaton.state for automaton in self._automata)
        if not keep:
            self._held = ""
            return whole, False
        self._held = whole[-keep:]
        return whole[:-keep], False

    def flush(self) -> str:
        """The answer is over: what was held back is visible after all."""
        held, self._held = self._held, ""
        return held
