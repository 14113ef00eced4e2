"""
Commands of several keys, for a cluster, where one command has the keys of one slot only. Pure functions, no I/O.

The stores and the ledger know nothing of clusters: RedisConnection takes their commands apart, and puts the answers
together again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

__all__ = ["join_answers", "scan_step", "scan_turn", "split_commands"]

_PER_KEY: Final = {"MGET": "GET", "UNLINK": "UNLINK", "EXISTS": "EXISTS"}
_NODE_BITS: Final = 16


def split_commands(commands: Sequence[tuple[Any, ...]]) -> list[list[tuple[Any, ...]]]:
    """Return for each of *commands* the commands of one key that do the same."""
    return [
        [(_PER_KEY[command[0]], key) for key in command[1:]]
        if isinstance(command[0], str) and command[0] in _PER_KEY
        else [command]
        for command in commands
    ]


def join_answers(commands: Sequence[tuple[Any, ...]], parts: Sequence[list[Any]]) -> list[Any]:
    """Return one answer per command from those of its parts; the first error among them is the answer of all."""
    return [_joined(command[0], answers) for command, answers in zip(commands, parts, strict=True)]


def scan_turn(cursor: int) -> tuple[int, int]:
    """Return the number of the node whose turn it is, and its own cursor."""
    return cursor & ((1 << _NODE_BITS) - 1), cursor >> _NODE_BITS


def scan_step(node: int, cursor: int, n_nodes: int) -> int:
    """Return the cursor that goes on after *node* gave *cursor*: with this node, the next one, or 0 for the end."""
    if cursor:
        return cursor << _NODE_BITS | node
    return node + 1 if node + 1 < n_nodes else 0


def _joined(name: Any, answers: list[Any]) -> Any:
    error = next((answer for answer in answers if isinstance(answer, Exception)), None)
    if error is not None:
        return error
    if name == "MGET":
        return answers
    return sum(answers) if name in ("UNLINK", "EXISTS") else answers[0]
