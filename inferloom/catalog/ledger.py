"""Who holds which bytes of which device. Pure and synchronous; whoever wants more than is left is told so.

Invariant: for every device the bytes held are the sum of its reservations, no less and no more.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

# A device without a budget: an accelerator's memory is not known here, only its worker can see how much is free.
UNBOUNDED = 1 << 62


class Kinds(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes by what they are for. `weights` are mapped from files, `kv` are the pages of keys and values, `workspace` is
    all else that a worker has for itself."""

    weights: int = 0
    kv: int = 0
    workspace: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.workspace


class Reservation(msgspec.Struct, frozen=True, eq=False):
    """A place in the ledger. What it holds now is `Ledger.of(reservation)`."""

    owner: str
    device: str


class Overdrawn(Exception):
    """More was wanted than is free; `missing` bytes are not there."""

    def __init__(self, device: str, missing: int) -> None:
        super().__init__(f"{missing:,} bytes of {device} are missing")
        self.device = device
        self.missing = missing


class Ledger:
    """Budgets in bytes by device, and what was reserved of them."""

    def __init__(self, budgets: Mapping[str, int]) -> None:
        self._budgets = dict(budgets)
        self._held: dict[Reservation, Kinds] = {}

    def budget(self, device: str) -> int:
        """Bytes that models may take of a device; `UNBOUNDED` where nothing was said of it."""
        return self._budgets.get(device, UNBOUNDED)

    def set_budget(self, device: str, bytes_: int) -> None:
        """Reservations stay as they are, so that less than nothing may be free afterwards."""
        self._budgets[device] = bytes_

    def devices(self) -> list[str]:
        """Those with a budget."""
        return list(self._budgets)

    def reserve(self, owner: str, device: str, bytes_: Kinds) -> Reservation:
        """Raises `Overdrawn` where they do not fit, and has then changed nothing."""
        self._afford(device, bytes_.total)
        reservation = Reservation(owner, device)
        self._held[reservation] = bytes_
        return reservation

    def change(self, reservation: Reservation, bytes_: Kinds) -> None:
        """To hold `bytes_` from now on. Raises `Overdrawn` where more does not fit, and has then changed nothing; less
        always does. A released reservation cannot be changed: `KeyError`."""
        more = bytes_.total - self._held[reservation].total
        if more > 0:
            self._afford(reservation.device, more)
        self._held[reservation] = bytes_

    def release(self, reservation: Reservation) -> None:
        """Idempotent."""
        self._held.pop(reservation, None)

    def of(self, reservation: Reservation) -> Kinds:
        """What a reservation holds; nothing once it was released."""
        return self._held.get(reservation, Kinds())

    def held(self) -> list[Reservation]:
        """In the order in which they were made."""
        return list(self._held)

    def used(self, device: str) -> int:
        return sum(kinds.total for one, kinds in self._held.items() if one.device == device)

    def free(self, device: str) -> int:
        """Less than nothing after a budget was lowered below what is held."""
        return self.budget(device) - self.used(device)

    def _afford(self, device: str, bytes_: int) -> None:
        missing = bytes_ - self.free(device)
        if bytes_ > 0 and missing > 0:
            raise Overdrawn(device, missing)
