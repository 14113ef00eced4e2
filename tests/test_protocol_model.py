"""The protocol holds in every interleaving, and no rule of it can be left out."""

from __future__ import annotations

from typing import Any

import pytest

from tests.protocol_model import RULES, Model

LEASE_HOLD: dict[str, Any] = {"losses": 1, "reads": 1, "properties": "A", "dropped": frozenset({"hold fence"})}
SCENARIOS: dict[str, dict[str, Any]] = {
    "two writers, two readers": {"writers": 2, "reads": 1},
    "crash": {"crashes": 1},
    "two writers and a crash": {"writers": 2, "readers": 1, "crashes": 1},
    "lost ledger": {"losses": 1, "reads": 1},
    "lost ledger and crash": {"losses": 1, "crashes": 1, "reads": 1},
    "snapshot": {"snapshot_reader": True, "crashes": 1},
    "unwatched": {"unwatched": True, "writers": 2, "readers": 1},
    "unwatched and crash": {"unwatched": True, "crashes": 1, "reads": 1},
    "unwatched, lost ledger and crash": {"unwatched": True, "losses": 1, "crashes": 1, "readers": 1, "reads": 3},
    "unwatched, hold of one lease": {
        "unwatched": True,
        "reads": 1,
        "properties": "A",
        "dropped": frozenset({"hold fence", "writers' lock"}),
    },
    # Where the database cannot be asked the hold ends with its lease; commits that have returned are still seen.
    "lost ledger, hold of one lease": {
        "losses": 1,
        "reads": 1,
        "properties": "A",
        "dropped": frozenset({"hold fence"}),
    },
    "crash, and a lost ledger with a hold of one lease": {
        "losses": 1,
        "crashes": 1,
        "reads": 1,
        "properties": "A",
        "dropped": frozenset({"hold fence"}),
    },
    # The database knows nothing of a statement that is not sent yet, and may end a hold before it.
    "statements, lost ledger": {"statements": True, "losses": 1, "reads": 1, "properties": "A"},
    # With LIVE_CACHE_ON_LEDGER_LOSS = "serve", of which no more is promised than that what has returned is seen.
    "no answer to the declaration": {"serves": True, "reads": 1, "properties": "A"},
}

NEEDED_FOR: dict[str, str] = {
    "stamp before select": "two writers, two readers",
    "intent": "crash",
    "intent blocks hits": "crash",
    "tick": "two writers, two readers",
    "tick without intent": "lost ledger, hold of one lease",
    "tick before return": "lost ledger, hold of one lease",
    "under way with intent": "no answer to the declaration",
    "under way of a transaction": "statements, lost ledger",
    "under way in time": "lost ledger, hold of one lease",
    "reaping ticks": "crash",
    "fence": "crash",
    "unknown outcome": "crash",
    "epoch": "lost ledger and crash",
    "hold": "lost ledger and crash",
    "hold fence": "lost ledger and crash",
    "hold ends with a tick": "lost ledger and crash",
    "no snapshot fills": "snapshot",
    "slot check": "two writers, two readers",
    "writers' lock": "unwatched and crash",
    "lock before look": "unwatched and crash",
    "look after": "unwatched, hold of one lease",
}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_protocol_holds(scenario: str) -> None:
    """No interleaving of the steps breaks a property."""
    verdict = Model(**SCENARIOS[scenario]).search()
    assert verdict.violation == "", "\n".join((verdict.violation, *verdict.trace))
    assert verdict.state_count > 500


@pytest.mark.parametrize("rule", RULES)
def test_no_rule_can_be_left_out(rule: str) -> None:
    """Without the rule the search finds a counterexample."""
    scenario = SCENARIOS[NEEDED_FOR[rule]]
    verdict = Model(**scenario | {"dropped": scenario.get("dropped", frozenset()) | {rule}}).search()
    assert verdict.violation, f"The protocol holds without the rule: {RULES[rule]}."
