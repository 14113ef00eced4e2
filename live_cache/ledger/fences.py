"""
Asks the database whether a writer's transaction is over, so that its intent may be reaped (rules 11 and 17).

A *fence* is a short text that names a transaction, or a session where there is no transaction, in a way that the
database can be asked about later and by others. Every answer is on the safe side: "over" only with proof. Without
proof an intent stays, and the reads that it touches go to the database, until the writer ticks, or ``manage.py
live_cache clear`` starts a new epoch.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from live_cache.chance import chance
from live_cache.ledger import fences_mysql, fences_postgresql, fences_sqlite
from live_cache.ledger.base import Ledger
from live_cache.ledger.clocks import NEWBORN, Intent, Reading
from live_cache.names import database_name, shared_database_name
from live_cache.testcases import is_in_testcase

if TYPE_CHECKING:
    from types import ModuleType

    from django.db.backends.base.base import BaseDatabaseWrapper

__all__ = ["are_past", "is_over", "session_token", "settle", "writer_token", "writers_in_progress"]

logger = logging.getLogger("live_cache.ledger")

_VENDORS: Final[dict[str, ModuleType]] = {
    "mysql": fences_mysql,
    "postgresql": fences_postgresql,
    "sqlite": fences_sqlite,
}

MEMO_SIZE: Final = 4096
"""Intents, and newborn clocks, that a process remembers per ledger. One that is forgotten waits for a lease again."""
ASK_AGAIN_S: Final = 0.25
"""Pause between two questions about an intent whose writer could not be proven to be over."""


def writer_token(connection: BaseDatabaseWrapper) -> str:
    """
    Return the fence of the running transaction of *connection*. Call it just before COMMIT, after the last write.

    Never raises and never breaks the transaction. Empty where the database cannot be asked later. One query on
    PostgreSQL; none on SQLite; on MySQL one per connection to the server.
    """
    return _token(connection, "writer_token")


def session_token(connection: BaseDatabaseWrapper) -> str:
    """
    Return a fence for a statement that is about to run in autocommit mode, where no transaction is to be named yet.

    It is over when the whole session is. Never raises; empty where the database cannot be asked later.
    """
    return _token(connection, "session_token")


def is_over(connection: BaseDatabaseWrapper, token: str) -> bool:
    """
    Return True only if the database proves that what *token* names is committed or rolled back.

    A SELECT that begins after the answer sees what it committed. False also means: it cannot be known. An empty token
    is never over.

    Args:
        connection: To the database that was written, the primary; in autocommit mode, or in a READ COMMITTED
            transaction that is not broken.
    """
    vendor = _VENDORS.get(connection.vendor)
    if vendor is None or not token:
        return False
    try:
        return bool(vendor.is_over(connection, token))
    except Exception:  # Whatever a driver raises: no proof.
        logger.warning("The database %r could not be asked about %r.", connection.alias, token, exc_info=True)
        return False


def writers_in_progress(connection: BaseDatabaseWrapper) -> frozenset[str] | None:
    """
    Return the names of all transactions that have written something and are not over, or None if that is unknown.

    Two answers decide whether a newborn hold may be lifted: see are_past().

    Args:
        connection: As is_over() takes it.
    """
    vendor = _VENDORS.get(connection.vendor)
    if vendor is None:
        return None
    try:
        answer: frozenset[str] | None = vendor.writers_in_progress(connection)
    except Exception:  # Whatever a driver raises: no proof.
        logger.warning("The database %r could not be asked for its writers.", connection.alias, exc_info=True)
        return None
    return answer


def are_past(marker: frozenset[str] | None, now: frozenset[str] | None) -> bool:
    """
    Return whether every writer of *marker* is over. Pure.

    Args:
        marker: Writers in progress at a moment after the birth of a clock was seen. Whoever is not among them either
            was over by then, or writes, and so declares, after the birth.
        now: Writers in progress at a later moment, or the same.
    """
    return marker is not None and now is not None and marker.isdisjoint(now)


def settle(ledger: Ledger, connection: BaseDatabaseWrapper, readings: Sequence[Reading]) -> bool:
    """
    Look after the intents that *readings* show, and reap those that have no more reason to stand.

    The hold of a newborn clock goes as soon as no writer is left from before its birth: none who has not announced
    himself, as the ledger knows, and no other, as the database proves or a lease that has passed. An intent goes when
    its lease is over *and* the database proves the same of its writer. Cheap while intents are young: the ledger is
    asked for expired ones only when this process has seen one for longer than a lease, the database once per call for
    the newborn, and about an old intent four times a second.

    Args:
        connection: As is_over() takes it.

    Returns:
        Whether something was reaped, so that another reading is worth its price.

    Raises:
        LedgerUnavailableError: The ledger did not answer.
    """
    memo = _memos.get(ledger)
    if memo is None:
        memo = _memos.setdefault(ledger, _Memo())
    has_reaped = False
    writers: frozenset[str] | None = None
    asked_s: float | None = None
    for reading in readings:
        if any(intent.id == NEWBORN for intent in reading.intents) and not ledger.has_unannounced(reading):
            # Before the question, which tells nothing of a birth after it, nor of a statement that is still to be sent.
            memo.note_birth(reading)
    for reading in readings:
        if not reading.intents:
            continue
        if any(intent.id == NEWBORN for intent in reading.intents):
            if _is_private(reading, connection):
                ledger.reap(reading.clock, {NEWBORN}, epoch=reading.epoch)
                has_reaped = True
                continue
            if asked_s is None:
                asked_s, writers = _recent_writers(connection)
            if memo.is_born_before(reading, asked_s) and memo.is_past(reading, writers):
                ledger.reap(reading.clock, {NEWBORN}, epoch=reading.epoch)
                has_reaped = True
        if memo.is_old(reading, lease_s=ledger.lease_s):
            over = {x.id for x in ledger.expired(reading.clock) if _has_no_writer(ledger, connection, reading, x)}
            if over:
                ledger.reap(reading.clock, over, epoch=reading.epoch)
                has_reaped = True
    return has_reaped


def _is_private(reading: Reading, connection: BaseDatabaseWrapper) -> bool:
    """Return whether the clock is of a TestCase, so that this connection is its only writer."""
    return is_in_testcase(connection) and reading.clock.startswith(f"{database_name(connection)}/")


def _recent_writers(connection: BaseDatabaseWrapper) -> tuple[float, frozenset[str] | None]:
    """Return when the database was last asked for its writers, by time.perf_counter(), and what it answered."""
    every_s: float = getattr(_VENDORS.get(connection.vendor), "ASK_EVERY_S", 0.0)
    name = shared_database_name(connection)
    now_s = time.perf_counter()
    if every_s and now_s < _ask_writers_at_s.get(name, 0.0):
        return _writers.get(name, (0.0, None))
    # Other processes ask too: without chance they could go on disturbing each other in step.
    _ask_writers_at_s[name] = now_s + every_s * chance.uniform(1, 2)
    _writers[name] = answer = now_s, writers_in_progress(connection)
    return answer


def _has_no_writer(ledger: Ledger, connection: BaseDatabaseWrapper, reading: Reading, intent: Intent) -> bool:
    return not ledger.has_unannounced(reading) if intent.id == NEWBORN else is_over(connection, intent.fence)


def _token(connection: BaseDatabaseWrapper, kind: str) -> str:
    vendor = _VENDORS.get(connection.vendor)
    if vendor is None:
        return ""
    try:
        return str(getattr(vendor, kind)(connection))
    except Exception:  # Whatever a driver raises: the write goes on, with an intent that nobody can prove to be over.
        logger.warning("The database %r could not name its transaction.", connection.alias, exc_info=True)
        return ""


class _Memo:
    """
    What this process has seen of one ledger.

    Several threads may use it at once: each step is one operation of a dict, and a lost entry costs time only.
    """

    def __init__(self) -> None:
        self._first_seen_s: OrderedDict[tuple[str, bytes, str], float] = OrderedDict()
        self._birth_seen_s: OrderedDict[tuple[str, bytes], float] = OrderedDict()
        self._ask_at_s: OrderedDict[tuple[str, bytes], float] = OrderedDict()
        self._markers: OrderedDict[tuple[str, bytes], frozenset[str]] = OrderedDict()

    def is_past(self, reading: Reading, writers: frozenset[str] | None) -> bool:
        """Return whether all writers from before the birth of the clock are over, given those of this moment."""
        if writers is None:
            return False
        key = reading.clock, reading.epoch
        marker = self._markers.setdefault(key, writers)
        _bound(self._markers)
        return are_past(marker, writers)

    def note_birth(self, reading: Reading) -> None:
        """Note that the hold of a newborn clock was seen, and since then no write that has not announced itself."""
        self._birth_seen_s.setdefault((reading.clock, reading.epoch), time.perf_counter())
        _bound(self._birth_seen_s)

    def is_born_before(self, reading: Reading, asked_s: float) -> bool:
        """Return whether note_birth() was called before *asked_s*, by time.perf_counter()."""
        return asked_s > self._birth_seen_s.get((reading.clock, reading.epoch), asked_s)

    def is_old(self, reading: Reading, *, lease_s: float) -> bool:
        """Return whether it is time to ask for expired intents: one was first seen more than a lease ago."""
        now_s = time.monotonic()
        is_old = False
        for intent in reading.intents:
            first_s = self._first_seen_s.setdefault((reading.clock, reading.epoch, intent.id), now_s)
            is_old = is_old or now_s - first_s > lease_s
        _bound(self._first_seen_s)
        if not is_old:
            return False
        key = reading.clock, reading.epoch
        if self._ask_at_s.get(key, 0.0) > now_s:
            return False
        self._ask_at_s[key] = now_s + ASK_AGAIN_S
        _bound(self._ask_at_s)
        return True


def _bound(
    memo: OrderedDict[tuple[str, bytes], float]
    | OrderedDict[tuple[str, bytes, str], float]
    | OrderedDict[tuple[str, bytes], frozenset[str]],
) -> None:
    while len(memo) > MEMO_SIZE:
        try:
            memo.popitem(last=False)
        except KeyError:  # Another thread was faster.
            return


# Several threads may use these at once: each step is one operation of a dict, and one question too many does no harm.
_ask_writers_at_s: dict[str, float] = {}
_writers: dict[str, tuple[float, frozenset[str] | None]] = {}
_memos: weakref.WeakKeyDictionary[Ledger, _Memo] = weakref.WeakKeyDictionary()
