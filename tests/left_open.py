"""What a connection shows of transactions that are open, to Django and to its driver."""

from __future__ import annotations

from typing import Any

__all__ = ["AUTOCOMMIT", "left_open"]

SERVER_STATUS_IN_TRANS = 1
SERVER_STATUS_AUTOCOMMIT = 2

AUTOCOMMIT = {
    "autocommit": True,
    "in_atomic_block": False,
    "needs_rollback": False,
    "closed_in_transaction": False,
    "savepoint_ids": [],
    "atomic_blocks": [],
    "run_on_commit": [],
    "driver": "autocommit",
}
"""What left_open() returns in autocommit mode, between two statements."""


def left_open(connection: Any) -> dict[str, object]:
    """
    Return what *connection* holds of transactions. It is not used, and not opened.

    Returns:
        Attributes by their names, and ``driver``: "autocommit", "transaction", "autocommit off", "broken", or None
        where there is no connection of the driver, so that Django begins anew.
    """
    names = [name for name in AUTOCOMMIT if name != "driver"]
    if connection.connection is None:
        # connect() sets these before anybody looks at them.
        return {"driver": None}
    return {name: getattr(connection, name) for name in names} | {"driver": _of_driver(connection)}


def _of_driver(connection: Any) -> str:
    driver = connection.connection
    if connection.vendor == "sqlite":
        try:
            return "transaction" if driver.in_transaction else "autocommit"
        except driver.ProgrammingError:  # it is closed
            return "broken"
    if connection.vendor == "postgresql":
        if driver.closed:
            return "broken"
        if driver.info.transaction_status != 0:
            return "transaction"
        return "autocommit" if driver.autocommit else "autocommit off"
    if not driver.open:
        return "broken"
    # Asked of the server, as what PyMySQL was told last may be older than an error; and PyMySQL learns nothing of it.
    told = driver.server_status
    driver.ping()
    status, driver.server_status = driver.server_status, told
    if status & SERVER_STATUS_IN_TRANS:
        return "transaction"
    return "autocommit" if status & told & SERVER_STATUS_AUTOCOMMIT else "autocommit off"
