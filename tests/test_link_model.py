"""Verdicts that rest on link sets hold in every interleaving, and no rule of them can be left out."""

from __future__ import annotations

from typing import Any

import pytest

from tests.link_model import LINK_RULES, LinkModel, Write

# The query shows the orders whose customer is True. Order 0 is of customer 0, who is not; customer 1 is.
SCENARIOS: dict[str, dict[str, Any]] = {
    "an order changes, its customer comes in": {
        "plans": ((Write("orders", 0, (0, 1)),), (Write("customers", 0, True),)),
        "reads": (3,),
    },
    "an order moves to a customer who goes out": {
        "plans": ((Write("orders", 0, (1, 1)),), (Write("customers", 1, False),)),
        "reads": (3,),
    },
    "a customer goes out, his order changes": {
        "plans": ((Write("customers", 1, False),), (Write("orders", 0, (1, 1)),), (Write("orders", 0, (0, 2)),)),
        "orders": (1,),
    },
    "a customer comes in and goes out around a change": {
        "plans": ((Write("customers", 0, True),), (Write("orders", 0, (0, 1)),), (Write("customers", 0, False),)),
    },
    "an order leaves, then its customer goes": {
        "plans": ((Write("orders", 0, None),), (Write("customers", 1, None),)),
        "orders": (1,),
        "reads": (3,),
    },
    "an order and its customer go together": {
        "plans": ((Write("orders", 0, None), Write("customers", 1, None)), (Write("orders", 1, (0, 1)),)),
        "orders": (1, 0),
    },
    "an order and its customer come together": {
        "plans": ((Write("customers", 1, True), Write("orders", 0, (1, 1))), (Write("orders", 1, (0, 1)),)),
        "orders": (-1, 0),
        "customers": (False, None),
    },
    "both change in one transaction": {
        "plans": ((Write("orders", 0, (0, 1)), Write("customers", 0, True)), (Write("customers", 1, False),)),
        "orders": (0, 1),
    },
    "an order is taken away, then its customer goes out": {
        "plans": ((Write("orders", 0, (0, 1)),), (Write("customers", 1, False),)),
        "orders": (1,),
        "reads": (3,),
    },
    "two readers": {
        "plans": ((Write("orders", 0, (1, 1)),), (Write("customers", 1, False),)),
        "reads": (1, 1),
    },
}

NEEDED_FOR: dict[str, str] = {
    "clocks after the set": "an order is taken away, then its customer goes out",
    "set after the entry": "a customer comes in and goes out around a change",
    "committed set": "a customer goes out, his order changes",
    "linked table is judged": "an order changes, its customer comes in",
    "intents are judged": "an order changes, its customer comes in",
    "no circle": "an order is taken away, then its customer goes out",
    "who fulfils the condition may matter": "an order and its customer go together",
}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_link_sets_hold(scenario: str) -> None:
    """No interleaving of the steps breaks a property."""
    verdict = LinkModel(**SCENARIOS[scenario]).search()
    assert verdict.violation == "", "\n".join((verdict.violation, *verdict.trace))
    assert verdict.state_count > 1000


@pytest.mark.parametrize("rule", LINK_RULES)
def test_no_rule_of_link_sets_can_be_left_out(rule: str) -> None:
    """Without the rule the search finds a counterexample."""
    verdict = LinkModel(**SCENARIOS[NEEDED_FOR[rule]], dropped=frozenset({rule})).search()
    assert verdict.violation, f"The argument holds without the rule: {LINK_RULES[rule]}."


def test_some_reads_are_served_by_the_set() -> None:
    """The model is not safe by serving nothing: an order of a customer who is not in the set leaves the entry."""
    seen = set()
    model = LinkModel(plans=((Write("orders", 0, (0, 1)),),), orders=(0, 1))
    states, found = [model.start], {model.start}
    while states:
        state = states.pop()
        for label, following, _ in model.steps(state):
            if label == "reader 0: is served, and remembers" and state.clocks[0].log:
                entry = state.readers[0].entry
                assert entry is not None
                seen.add(entry.stamps[0])
            if following not in found:
                found.add(following)
                states.append(following)
    assert seen == {0, 1}
