"""
One run of Django's cache tests in this process; started by tests/django_suite.py, never by hand.

Arguments: the composition of tiers, the folder of Django's tests, the file for the results.
"""

from __future__ import annotations

import faulthandler
import inspect
import json
import os
import sys
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__: list[str] = []

COMPOSITION, SUITE, OUTPUT = sys.argv[1:]
ROOT = Path(__file__).resolve().parent.parent
# Django's tests have modules called urls and settings, as this folder has.
sys.path[0] = SUITE
sys.path.insert(1, str(ROOT))

from tests.outcomes import OutcomeResult, outcomes  # noqa: E402 - found by the path above

TEST_TIMEOUT_S = 60

LABELS = ["cache", "sessions_tests", "template_tests.syntax_tests.test_cache", "async.tests.CacheTest"]

# What these look at belongs to one of Django's own backends.
NOT_APPLICABLE = {
    "cache.tests.DBCacheTests": "the backend in a database table",
    "cache.tests.DBCacheWithTimeZoneTests": "the backend in a database table",
    "cache.tests.CreateCacheTableForDBCacheTests": "the backend in a database table",
    "cache.tests.LocMemCacheTests": "attributes of LocMemCache; its BaseCacheTests and LRU tests run over ours",
    "cache.tests.PyLibMCCacheTests": "memcached",
    "cache.tests.PyMemcacheCacheTests": "memcached",
    "cache.tests.FileBasedCacheTests": "the files of FileBasedCache",
    "cache.tests.FileBasedCachePathLibTests": "the files of FileBasedCache",
    "cache.tests.RedisCacheTests": "attributes of RedisCache",
    "cache.tests.DefaultNonExpiringCacheKeyTests.test_caches_with_unset_timeout_set_expiring_key": (
        "reads LocMemCache._expire_info"
    ),
    "cache.tests.DefaultNonExpiringCacheKeyTests.test_caches_set_with_timeout_as_none_set_non_expiring_key": (
        "reads LocMemCache._expire_info"
    ),
}


class Result(OutcomeResult):
    """Keeps the outcome of each test: one of passed, failed, skipped; and why."""

    def startTest(self, test: Any) -> None:
        super().startTest(test)
        # A test that hangs says where, and ends the run.
        faulthandler.dump_traceback_later(TEST_TIMEOUT_S, exit=True)

    def stopTest(self, test: Any) -> None:
        faulthandler.cancel_dump_traceback_later()
        super().stopTest(test)


def _cases(suite: unittest.TestSuite) -> Iterator[Any]:
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from _cases(test)
        else:
            yield test


def _exchange_backends() -> None:
    """Let every override_settings(CACHES=...) of Django's tests name our backend in place of Django's."""
    import test_sqlite  # type: ignore[import-not-found]  # the settings of Django's tests
    from django.conf import global_settings
    from django.test import utils

    from tests.django_suite_caches import caches_of

    test_sqlite.CACHES = caches_of(COMPOSITION, global_settings.CACHES)
    plain = utils.override_settings.__init__

    def replaced(self: Any, **kwargs: Any) -> None:
        if "CACHES" in kwargs:
            kwargs["CACHES"] = caches_of(COMPOSITION, kwargs["CACHES"])
        plain(self, **kwargs)

    utils.override_settings.__init__ = replaced  # type: ignore[method-assign]  # in this process only


def main() -> None:
    """Run the tests and write the outcomes."""
    os.environ["DJANGO_SETTINGS_MODULE"] = "test_sqlite"
    _exchange_backends()
    import runtests  # type: ignore[import-not-found]  # the runner of Django's tests
    from django.test.runner import DiscoverRunner

    class Runner(DiscoverRunner):
        def get_resultclass(self) -> type[unittest.TestResult]:  # type: ignore[override]  # a class of our own
            return Result

        def build_suite(self, *args: Any, **kwargs: Any) -> unittest.TestSuite:
            from tests import django_suite_cases

            suite = unittest.TestSuite()
            for test in _cases(super().build_suite(*args, **kwargs)):
                class_name = f"{type(test).__module__}.{type(test).__qualname__}"
                reason = NOT_APPLICABLE.get(class_name) or NOT_APPLICABLE.get(test.id())
                if reason:
                    outcomes[test.id()] = ["not applicable", reason]
                else:
                    suite.addTest(test)
            suite.addTest(unittest.defaultTestLoader.loadTestsFromModule(django_suite_cases))
            return suite

    from django.conf import settings

    settings.TEST_RUNNER = Runner
    runtests.get_runner = lambda settings: Runner
    options = dict.fromkeys(inspect.signature(runtests.django_tests).parameters)
    options |= {"verbosity": 0, "parallel": 1, "test_labels": LABELS, "shuffle": False}
    try:
        runtests.django_tests(**options)
    finally:
        Path(OUTPUT).write_text(json.dumps(outcomes))


if __name__ == "__main__":
    os.environ.setdefault("TMPDIR", str(Path(OUTPUT).parent))
    main()
