"""What the tests of every ledger have in common: the hooks of a test module, and a settled clock."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import pytest

from live_cache.ledger.base import Ledger
from live_cache.ledger.clocks import NEWBORN, Dependency, Reading

__all__ = ["CLOCK", "OTHER", "LedgerCase"]

CLOCK = "default/shop_product"
OTHER = "default/shop_category"


class LedgerCase(ABC):
    """Hooks. Each test gets a ledger without clocks."""

    lease_s: ClassVar[float] = 0.2
    has_newborn_hold: ClassVar[bool] = True
    name: ClassVar[str]

    @abstractmethod
    def make_ledger(self) -> Ledger:
        """Return a ledger on the clocks of this test, with a lease of lease_s: another view of them at each call."""

    @abstractmethod
    def lose(self, clock: str) -> None:
        """Make the clock vanish behind the ledger's back."""

    @abstractmethod
    def let_pass(self, seconds: float) -> None:
        """Let that much of the ledger's own time pass."""

    @pytest.fixture
    def ledger(self) -> Iterator[Ledger]:
        ledger = self.make_ledger()
        yield ledger
        ledger.close()

    def _read(self, ledger: Ledger, dependency: Dependency | None = None) -> Reading:
        return ledger.read([dependency or Dependency(CLOCK)])[0]

    def _settle(self, ledger: Ledger) -> Reading:
        """Create the clock and lift its hold."""
        born = self._read(ledger)
        ledger.reap(CLOCK, {NEWBORN}, epoch=born.epoch)
        return self._read(ledger)
