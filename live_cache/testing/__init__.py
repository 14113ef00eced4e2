"""
Suites that every store and every ledger must pass, for those of your own as well. Needs pytest.
"""

from __future__ import annotations

from live_cache.testing.ledgers import LedgerSuite
from live_cache.testing.stores import StoreSuite

__all__ = ["LedgerSuite", "StoreSuite"]
