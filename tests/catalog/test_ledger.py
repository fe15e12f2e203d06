"""The ledger's sums."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from inferloom.catalog.ledger import UNBOUNDED, Kinds, Ledger, Overdrawn, Reservation

DEVICES = ("cpu", "cuda:0")
sizes = st.integers(0, 60)
kinds = st.builds(Kinds, weights=sizes, kv=sizes, workspace=sizes)


class Bookkeeping(RuleBasedStateMachine):
    """Any interleaving of reserving, changing, releasing and new budgets, beside a dictionary that is added up."""

    made = Bundle("made")

    def __init__(self) -> None:
        super().__init__()
        self.budgets = {"cpu": 100, "cuda:0": 50}
        self.ledger = Ledger(self.budgets)
        self.model: dict[Reservation, Kinds] = {}

    def used(self, device: str) -> int:
        return sum(one.total for held, one in self.model.items() if held.device == device)

    @rule(target=made, device=st.sampled_from(DEVICES), wanted=kinds)
    def reserve(self, device: str, wanted: Kinds) -> Reservation:
        fits = wanted.total == 0 or self.used(device) + wanted.total <= self.budgets[device]
        try:
            reservation = self.ledger.reserve("m", device, wanted)
        except Overdrawn as error:
            assert not fits
            assert error.missing == self.used(device) + wanted.total - self.budgets[device]
            return Reservation("nobody", device)
        assert fits
        self.model[reservation] = wanted
        return reservation

    @rule(reservation=made, wanted=kinds)
    def change(self, reservation: Reservation, wanted: Kinds) -> None:
        if reservation not in self.model:
            with pytest.raises(KeyError):
                self.ledger.change(reservation, wanted)
            return
        more = wanted.total - self.model[reservation].total
        fits = more <= 0 or self.used(reservation.device) + more <= self.budgets[reservation.device]
        try:
            self.ledger.change(reservation, wanted)
        except Overdrawn:
            assert not fits
        else:
            assert fits
            self.model[reservation] = wanted

    @rule(reservation=made)
    def release(self, reservation: Reservation) -> None:
        self.ledger.release(reservation)
        self.model.pop(reservation, None)

    @rule(device=st.sampled_from(DEVICES), bytes_=st.integers(0, 200))
    def set_budget(self, device: str, bytes_: int) -> None:
        self.budgets[device] = bytes_
        self.ledger.set_budget(device, bytes_)

    @invariant()
    def sums_are_exact(self) -> None:
        assert self.ledger.held() == list(self.model)
        for device in DEVICES:
            assert self.ledger.used(device) == self.used(device)
            assert self.ledger.free(device) == self.budgets[device] - self.used(device)
        for reservation, held in self.model.items():
            assert self.ledger.of(reservation) == held


TestBookkeeping = Bookkeeping.TestCase


def test_two_reservations_of_one_owner_are_two() -> None:
    ledger = Ledger({"cpu": 10})
    first, second = (ledger.reserve("m", "cpu", Kinds(weights=3)) for _ in range(2))
    ledger.release(first)
    ledger.release(first)
    assert ledger.held() == [second]
    assert ledger.free("cpu") == 7
    assert ledger.of(first) == Kinds()


def test_a_device_without_a_budget_is_not_bounded() -> None:
    ledger = Ledger({"cpu": 10})
    ledger.reserve("m", "cuda:0", Kinds(kv=1 << 40))
    assert ledger.budget("cuda:0") == UNBOUNDED
    assert ledger.free("cpu") == 10
