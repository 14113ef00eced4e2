"""The search of a model through every state that its steps can reach, breadth first; see protocol_model.py."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, TypeVar

__all__ = ["Search", "Verdict", "with_reader"]

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a search found: a violation with the steps that lead to it, or nothing in *state_count* states."""

    violation: str
    trace: tuple[str, ...]
    state_count: int


class Search(ABC, Generic[S]):
    """
    A model of writers, readers and a ledger, with the rules in *dropped* left out.

    Its states, which can be compared and hashed, have writers and readers in tuples of those names.
    """

    rules: ClassVar[Mapping[str, str]]
    start: S

    def __init__(self, dropped: frozenset[str]) -> None:
        unknown = dropped - self.rules.keys()
        if unknown:
            raise ValueError(f"There is no rule {sorted(unknown)}; rules are {sorted(self.rules)}.")
        self.dropped = dropped

    @abstractmethod
    def writer_steps(self, state: S, index: int) -> Iterator[tuple[str, S]]:
        """Yield label and following state of each step that a writer can take."""

    @abstractmethod
    def ledger_steps(self, state: S) -> Iterator[tuple[str, S]]:
        """Yield label and following state of each step that the ledger can take."""

    @abstractmethod
    def reader_steps(self, state: S, index: int) -> Iterator[tuple[str, S, str]]:
        """Yield label, following state and violation of each step that a reader can take."""

    @abstractmethod
    def violation_of(self, state: S) -> str:
        """Return what is wrong with a state, or an empty text."""

    def keeps(self, rule: str) -> bool:
        """Return whether *rule* was not left out."""
        return rule not in self.dropped

    def steps(self, state: Any) -> Iterator[tuple[str, S, str]]:
        """Yield label, following state and violation of every step that can be taken."""
        for index in range(len(state.writers)):
            for label, following in self.writer_steps(state, index):
                yield f"writer {index}: {label}", following, ""
        for label, following in self.ledger_steps(state):
            yield f"ledger: {label}", following, ""
        for index in range(len(state.readers)):
            for label, following, violation in self.reader_steps(state, index):
                yield f"reader {index}: {label}", following, violation

    def search(self, *, max_states: int = 2_000_000) -> Verdict:
        """
        Visit every reachable state.

        Raises:
            OverflowError: There are more than *max_states*.
        """
        before: dict[S, tuple[S, str] | None] = {self.start: None}
        queue = deque([self.start])
        while queue:
            state = queue.popleft()
            for label, following, violation in self.steps(state):
                is_new = following not in before
                if is_new and not violation:
                    violation = self.violation_of(following)
                if violation:
                    return Verdict(violation, (*_trace(before, state), label), len(before))
                if is_new:
                    before[following] = (state, label)
                    queue.append(following)
            if len(before) > max_states:
                raise OverflowError(f"More than {max_states} states.")
        return Verdict("", (), len(before))


def with_reader(state: Any, index: int, **changes: object) -> Any:
    """Return *state* with another reader *index*."""
    reader = replace(state.readers[index], **changes)
    return replace(state, readers=(*state.readers[:index], reader, *state.readers[index + 1 :]))


def _trace(before: dict[S, tuple[S, str] | None], state: S) -> tuple[str, ...]:
    labels: list[str] = []
    link = before[state]
    while link is not None:
        labels.append(link[1])
        link = before[link[0]]
    return tuple(reversed(labels))
