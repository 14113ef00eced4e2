"""
Every error of the package, in one tree.

    LiveCacheError
    |- StoreError                      a store could not do what it was asked
    |  |- StoreUnavailableError        it did not answer; the driver's error is __cause__
    |  |- StoreUnsupportedError        it has no such operation
    |  |- InvalidKeyError              the key breaks the rules for keys
    |  |- QuotaExceededError           the value or the number of keys is over the store's limit
    |- LedgerUnavailableError          the ledger did not answer; the driver's error is __cause__
    |  |- CommitRefusedError           so the COMMIT was not sent; also django's OperationalError
    |- FrameError                      stored bytes are corrupt, foreign, or of another version
    |- UncachableError
    |  |- UncachableQueryError         a query whose result cannot be cached correctly
    |  |- UncachableValueError         a value that no codec stores exactly
    |- ConfigurationError              a wrong setting; also django's ImproperlyConfigured
       |- MissingExtraError            an optional dependency is not installed
"""

from __future__ import annotations

from django.core.exceptions import ImproperlyConfigured
from django.db.utils import OperationalError

__all__ = [
    "CommitRefusedError",
    "ConfigurationError",
    "FrameError",
    "InvalidKeyError",
    "LedgerUnavailableError",
    "LiveCacheError",
    "MissingExtraError",
    "QuotaExceededError",
    "StoreError",
    "StoreUnavailableError",
    "StoreUnsupportedError",
    "UncachableError",
    "UncachableQueryError",
    "UncachableValueError",
]


class LiveCacheError(Exception):
    """Base of every error that this package raises."""


class StoreError(LiveCacheError):
    """A store could not do what it was asked."""


class StoreUnavailableError(StoreError):
    """The store did not answer. The driver's error is ``__cause__``."""


class StoreUnsupportedError(StoreError):
    """The store has no such operation, for example an exact length."""


class InvalidKeyError(StoreError, ValueError):
    """The key is empty, too long, or holds a character that keys may not hold."""


class QuotaExceededError(StoreError):
    """The value is larger, or the keys are more, than the store accepts."""


class LedgerUnavailableError(LiveCacheError):
    """The ledger did not answer. The driver's error is ``__cause__``."""


class CommitRefusedError(LedgerUnavailableError, OperationalError):
    """
    A COMMIT was not sent, because the ledger is out of reach and LIVE_CACHE_ON_LEDGER_LOSS is "refuse".

    It is an OperationalError so that atomic() rolls the transaction back as it does for any database error.
    """


class FrameError(LiveCacheError):
    """
    Stored bytes are not a frame of this package, of this version, or are corrupt.

    Readers treat it as a miss, count it, and delete the bytes.
    """


class UncachableError(LiveCacheError):
    """Something cannot be cached correctly, so the database answers."""


class UncachableQueryError(UncachableError):
    """The result of this query cannot be cached correctly. The message says why."""


class UncachableValueError(UncachableError):
    """No codec stores this value exactly, in value and in type."""


class ConfigurationError(LiveCacheError, ImproperlyConfigured):
    """A setting is wrong. The message names it, what exists, and what to do."""


class MissingExtraError(ConfigurationError):
    """An optional dependency is not installed. The message names the extra."""
