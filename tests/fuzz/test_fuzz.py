"""The targets of the fuzzer, by Hypothesis and by chance: seconds in each run, a minute or more in a deep one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.deep import deep
from tests.fuzz import fuzz_frame, targets

_EXAMPLES = deep(300, 50_000)


@pytest.mark.parametrize("target", targets.TARGETS, ids=lambda target: target.__name__)
def test_seeds_pass(target: Callable[[bytes], None]) -> None:
    """What the package itself wrote is no finding."""
    for seed in targets.SEEDS[target]:
        target(seed)


@pytest.mark.parametrize("target", targets.TARGETS, ids=lambda target: target.__name__)
@given(data=st.data())
@settings(max_examples=_EXAMPLES, deadline=None)
def test_pieces_of_seeds(target: Callable[[bytes], None], data: st.DataObject) -> None:
    """Any bytes between the pieces of something intact."""
    seed = data.draw(st.sampled_from(targets.SEEDS[target]))
    start = data.draw(st.integers(0, len(seed)))
    end = data.draw(st.integers(start, len(seed)))
    target(seed[:start] + data.draw(st.binary(max_size=40)) + seed[end:])


@given(data=st.binary(max_size=200))
@settings(max_examples=_EXAMPLES, deadline=None)
def test_any_bytes(data: bytes) -> None:
    """Bytes of no origin, for every target."""
    for target in targets.TARGETS:
        target(data)


def test_the_program_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """It ends after its time, and says how many inputs it tried."""
    assert fuzz_frame.main(["--plain", "--seconds", str(deep(2, 600)), "--seed", "7"]) == 0
    assert "none failed" in capsys.readouterr().out


def test_the_program_keeps_what_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that lets something else than FrameError out is found, and its input can be tried again."""
    monkeypatch.chdir(tmp_path)

    def careless(payload: bytes) -> None:
        if len(payload) % 7 == 3:
            raise ValueError("found")

    monkeypatch.setattr(targets, "TARGETS", (careless,))
    monkeypatch.setattr(targets, "SEEDS", {careless: [b"seed"]})
    with pytest.raises(ValueError, match="found"):
        fuzz_frame.main(["--plain", "--seconds", "10", "--seed", "1"])
    (crash,) = tmp_path.iterdir()
    with pytest.raises(ValueError, match="found"):
        fuzz_frame.main([str(crash)])


def test_a_forgery_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The target fails if a frame that nobody signed is decoded with a key."""
    signed = next(iter(targets._SIGNED))
    targets.raw(signed)
    monkeypatch.setattr(targets, "_SIGNED", frozenset())
    with pytest.raises(AssertionError, match="nobody signed"):
        targets.raw(signed)
