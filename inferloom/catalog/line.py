"""The requests that wait for a model: each has a ticket, and one that was let in is as good as a lease."""

from __future__ import annotations

from collections.abc import Callable


class Ticket:
    """One request's place."""

    __slots__ = ("admitted", "since")

    def __init__(self, since: float) -> None:
        self.since = since
        self.admitted = False


class Line:
    """Those who wait under one name. All are let in at once, when the model is loaded or need not yield any more: whoever
    is let in takes a lease in one of the next turns of the loop, and until then the model must not go for others."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._tickets: dict[Ticket, None] = {}  # in the order of their coming
        self.admitted = 0

    def __len__(self) -> int:
        return len(self._tickets)

    @property
    def oldest_secs(self) -> float:
        """How long the first of them has waited."""
        first = next(iter(self._tickets), None)
        return 0.0 if first is None else max(0.0, self._clock() - first.since)

    def join(self) -> Ticket:
        ticket = Ticket(self._clock())
        self._tickets[ticket] = None
        return ticket

    def leave(self, ticket: Ticket) -> None:
        del self._tickets[ticket]
        self.admitted -= ticket.admitted

    def admit(self) -> None:
        """Let in all who wait now."""
        for ticket in self._tickets:
            ticket.admitted = True
        self.admitted = len(self._tickets)

    def turn_back(self) -> None:
        """The model is not there any more: nobody is let in."""
        for ticket in self._tickets:
            ticket.admitted = False
        self.admitted = 0
