"""The tutorial runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.testapp import models

TUTORIAL = Path(__file__).resolve().parent.parent / "docs" / "tutorial.md"


@pytest.mark.django_db(transaction=True)
def test_every_block_of_the_tutorial_runs(cache: str) -> None:
    """The blocks of Python run one after the other, as a reader would run them."""
    blocks = re.findall(r"^```python\n(.*?)^```$", TUTORIAL.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 6
    names: dict[str, object] = {"Author": models.Author, "Book": models.Book}
    for block in blocks:
        exec(compile(block, str(TUTORIAL), "exec"), names)
