"""
One run of Django's own tests in this process; started by tests/orm_suite.py, never by hand.

Arguments: the mode (plain, live, uncounted), the folder of Django's tests, the file for the results, and labels.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
import unittest
from pathlib import Path
from typing import Any

__all__: list[str] = []

MODE, SUITE, OUTPUT, *LABELS = sys.argv[1:]
ROOT = Path(__file__).resolve().parent.parent
# Django's tests have modules called urls and settings, as this folder has.
sys.path[0] = SUITE
sys.path.insert(1, str(ROOT))

from tests.outcomes import OutcomeResult, outcomes  # noqa: E402 - found by the path above


class Result(OutcomeResult):
    """Keeps the outcome of each test: one of passed, failed, skipped; and why."""

    def startTest(self, test: Any) -> None:
        super().startTest(test)
        if MODE != "plain":
            from tests import orm_suite_live

            orm_suite_live.wrong_reads.clear()

    def stopTest(self, test: Any) -> None:
        if MODE != "plain":
            from tests import orm_suite_live

            if orm_suite_live.wrong_reads:
                self.note(test, "failed", "\n".join(orm_suite_live.wrong_reads))
        super().stopTest(test)


def _uncount() -> None:
    """Let assertNumQueries() accept any number."""
    from django.test import testcases
    from django.test.utils import CaptureQueriesContext

    testcases._AssertNumQueriesContext.__exit__ = CaptureQueriesContext.__exit__


def main() -> None:
    """Run the labels and write the outcomes."""
    import runtests
    from django.test.runner import DiscoverRunner

    class Runner(DiscoverRunner):
        def get_resultclass(self) -> type[unittest.TestResult]:
            return Result

        def setup_test_environment(self, **kwargs: Any) -> None:
            super().setup_test_environment(**kwargs)
            if MODE != "plain":
                from tests import orm_suite_live

                orm_suite_live.install()
            if MODE == "uncounted":
                _uncount()

    from django.conf import settings

    settings.TEST_RUNNER = Runner
    runtests.get_runner = lambda settings: Runner
    if MODE != "plain":
        runtests.ALWAYS_INSTALLED_APPS.append("live_cache")
    options = dict.fromkeys(inspect.signature(runtests.django_tests).parameters)
    options |= {"verbosity": 0, "parallel": 1, "test_labels": LABELS, "shuffle": False}
    try:
        runtests.django_tests(**options)
    finally:
        extra: dict[str, Any] = {}
        if MODE != "plain":
            from tests import orm_suite_live

            extra = {"counts": orm_suite_live.counts, "reasons": orm_suite_live.reasons}
        Path(OUTPUT).write_text(json.dumps({"outcomes": outcomes, **extra}))


if __name__ == "__main__":
    os.environ.setdefault("TMPDIR", str(Path(OUTPUT).parent))
    main()
