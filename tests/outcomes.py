"""How the runs of Django's own tests keep what became of each test."""

from __future__ import annotations

import traceback
import unittest
from typing import Any

__all__ = ["OutcomeResult", "outcomes"]

outcomes: dict[str, list[str]] = {}
"""Per test: one of passed, failed, skipped; and why."""


class OutcomeResult(unittest.TextTestResult):
    """Writes into outcomes. Whatever else is said of a test that has failed, it stays failed."""

    def note(self, test: Any, outcome: str, detail: str) -> None:
        """Keep the outcome of *test*."""
        name = test.id()
        if outcomes.get(name, [""])[0] != "failed":
            outcomes[name] = [outcome, detail]

    def addSuccess(self, test: Any) -> None:
        super().addSuccess(test)
        self.note(test, "passed", "")

    def addSkip(self, test: Any, reason: str) -> None:
        super().addSkip(test, reason)
        self.note(test, "skipped", reason)

    def addExpectedFailure(self, test: Any, err: Any) -> None:
        super().addExpectedFailure(test, err)
        self.note(test, "passed", "")

    def addUnexpectedSuccess(self, test: Any) -> None:
        super().addUnexpectedSuccess(test)
        self.note(test, "failed", "unexpected success")

    def addError(self, test: Any, err: Any) -> None:
        super().addError(test, err)
        self.note(test, "failed", "".join(traceback.format_exception(*err)))

    def addFailure(self, test: Any, err: Any) -> None:
        super().addFailure(test, err)
        self.note(test, "failed", "".join(traceback.format_exception(*err)))

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        super().addSubTest(test, subtest, err)
        if err is not None:
            self.note(test, "failed", f"{subtest}\n{''.join(traceback.format_exception(*err))}")
