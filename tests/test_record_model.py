"""What is told by row and judged by the reader holds in every interleaving, and no rule of it can be left out."""

from __future__ import annotations

from typing import Any

import pytest

from tests.record_model import RECORD_RULES, Plan, RecordModel

# The query shows bucket 0, where row 0 begins, unless it is said otherwise.
SCENARIOS: dict[str, dict[str, Any]] = {
    "a row leaves, another changes": {"plans": (Plan(0, 1), Plan(1, 1)), "reads": (3,)},
    "a row leaves and comes back": {"plans": (Plan(0, 1), Plan(0, 0))},
    "a row comes": {"plans": (Plan(1, 0), Plan(0, 0))},
    "a row comes and leaves": {"plans": (Plan(0, 0), Plan(0, 1)), "start": (1, 1)},
    "query of one row": {"query": "row", "plans": (Plan(1, 0), Plan(0, 1)), "reads": (3,)},
    "three writers": {"plans": (Plan(1, 1), Plan(0, 1), Plan(0, 0))},
    "two readers": {"plans": (Plan(1, 1), Plan(0, 0)), "reads": (1, 2)},
    "crash": {"plans": (Plan(0, 0), Plan(1, 1)), "crashes": 1, "reads": (3,)},
    "change that is not told": {"plans": (Plan(0, 0, is_told=False), Plan(1, 1)), "crashes": 1},
    "short log": {"plans": (Plan(0, 0), Plan(1, 1)), "reads": (3,), "log_length": 1},
    "lost ledger": {"plans": (Plan(1, 1), Plan(0, 0)), "losses": 1},
    "lost ledger with a past": {"plans": (Plan(1, 1), Plan(0, 0)), "losses": 1, "seq": 1, "reads": (3,)},
}

NEEDED_FOR: dict[str, str] = {
    "every record": "a row leaves, another changes",
    "judged alone": "a row leaves and comes back",
    "before-image": "a row leaves, another changes",
    "after-image": "a row comes",
    "images under the lock": "a row comes and leaves",
    "gap": "short log",
    "log of the epoch": "lost ledger",
    "as far as the reading": "query of one row",
    "memo of the entry": "two readers",
    "memo of the epoch": "lost ledger with a past",
    "change of the table": "change that is not told",
    "intents are judged": "crash",
    "intent without record": "change that is not told",
    "reaping tells": "crash",
}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_records_hold(scenario: str) -> None:
    """No interleaving of the steps breaks a property."""
    verdict = RecordModel(**SCENARIOS[scenario]).search()
    assert verdict.violation == "", "\n".join((verdict.violation, *verdict.trace))
    assert verdict.state_count > 1000


@pytest.mark.parametrize("rule", RECORD_RULES)
def test_no_rule_of_records_can_be_left_out(rule: str) -> None:
    """Without the rule the search finds a counterexample."""
    verdict = RecordModel(**SCENARIOS[NEEDED_FOR[rule]], dropped=frozenset({rule})).search()
    assert verdict.violation, f"The protocol holds without the rule: {RECORD_RULES[rule]}."


def test_some_reads_are_served_after_a_change() -> None:
    """The model is not safe by serving nothing: an excluded change leaves the entry, and the reader remembers."""
    model = RecordModel(plans=(Plan(1, 1),))
    seen = set()
    states, found = [model.start], {model.start}
    while states:
        for label, following, _ in model.steps(states.pop()):
            seen.add(label)
            if following not in found:
                found.add(following)
                states.append(following)
    assert {"reader 0: is served, and remembers", "reader 0: is served, and stores again"} <= seen
