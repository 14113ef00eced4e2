"""What the package exports is what it says it exports, and importing it touches nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

import live_cache


def test_all_is_sorted_and_complete() -> None:
    """__all__ is sorted, each name is there, and each has a docstring."""
    assert live_cache.__all__ == sorted(live_cache.__all__)
    for name in live_cache.__all__:
        assert getattr(live_cache, name).__doc__, name
    assert set(live_cache.__all__) <= set(dir(live_cache))


def test_unknown_name_is_an_attribute_error() -> None:
    """The lazy loader does not hide a wrong name."""
    with pytest.raises(AttributeError, match="nonsense"):
        getattr(live_cache, "nonsense")  # noqa: B009 - the type checker knows that it is not there


def test_importing_reads_no_settings_and_no_models() -> None:
    """``import live_cache`` works before Django is set up."""
    code = "import live_cache, sys; assert not any(m.startswith('django') for m in sys.modules), sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
