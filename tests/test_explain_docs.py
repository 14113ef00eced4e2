"""The pages about misses: their code runs and prints what they show, and every counter and reason is listed."""

from __future__ import annotations

import contextlib
import io
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

import live_cache
from live_cache import live
from tests.testapp.models import Author, Book

ROOT = Path(__file__).resolve().parent.parent
HOWTO = ROOT / "docs" / "howto" / "misses.md"
METRICS = ROOT / "docs" / "reference" / "metrics.md"
PACKAGE = Path(live_cache.__file__).parent  # the tests may run against what is installed
SOURCES = [path for path in PACKAGE.rglob("*.py") if "testing" not in path.parts]


def neutral(text: str) -> str:
    """Return *text* without what differs from run to run, and with the names that the page uses."""
    text = text.replace("testapp", "shop")
    return re.sub(r"\b[0-9a-f]{32}\b", "DIGEST", re.sub(r"\d+\.\d s ago", "AGO", text)).strip()


def run(*args: str) -> str:
    """Return what the command writes."""
    stdout = io.StringIO()
    call_command("live_cache", *args, stdout=stdout)
    return stdout.getvalue()


@pytest.fixture
def shelf(cache: str) -> None:
    """Sixty books of one author, at the prices 0 to 59."""
    author = Author.objects.create(name="Ann")
    for number in range(60):
        Book.objects.create(pk=number + 1, title=f"Book {number:03}", author=author, price=number, pages=number)


@pytest.mark.django_db(transaction=True)
def test_the_code_of_the_page_prints_what_the_page_shows(shelf: None) -> None:
    """But for keys and times."""
    blocks = re.findall(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```$", HOWTO.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, Any] = {"Book": Book, "connection": connection}
    for code, expected in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code.replace("shop_", "testapp_"), str(HOWTO), "exec"), names)
        assert neutral(expected) == neutral(printed.getvalue())


@pytest.mark.django_db(transaction=True)
def test_the_command_prints_what_the_method_returns(shelf: None) -> None:
    """For the page of the window, and under the key, that its options name; as text and as JSON."""
    found = Book.objects.filter(price__lt=30).order_by("-price", "pk")
    list(live(found)[20:40])
    list(live(found, "front/page")[:20])
    Book.objects.filter(title="Book 005").update(price=6)
    args = ["explain", "testapp.Book", "--filter", "price__lt=30", "--order-by=-price,pk"]
    assert neutral(run(*args, "--rows", "20:40")) == neutral(str(live(found)[20:40].live_explain()))
    report = json.loads(run(*args, "--rows", "20:40", "--format", "json"))
    (tier,) = report["tiers"]
    dropped_by = tier["dropped_by"]
    assert tier["state"] == "stale"
    assert 0 < time.time_ns() - dropped_by.pop("at_ns") < 60e9
    assert 0 <= dropped_by.pop("age_s") < 60
    assert dropped_by == {
        "reason": "row",
        "table": "testapp_book",
        "kind": "update",
        "columns": ["price"],
        "key": [6],
        "note": "",
    }
    (table,) = report["depends_on"]
    assert [use["condition"] for use in table["uses"]] == ["price < 30"]
    assert table["slots"][:2] == [0, 1]
    report = json.loads(run(*args, "--rows=:20", "--cache-key", "front/page", "--format", "json"))
    assert report["cache_key"].startswith("front/page/")
    assert [tier["state"] for tier in report["tiers"]] == ["fresh"]
    assert report["window"].startswith("rows 0 to 20 by -price, id;")
    with pytest.raises(CommandError, match="START:STOP"):
        run(*args, "--rows", "20")


@pytest.mark.django_db(transaction=True)
def test_the_parts_of_a_query_are_told_in_words(shelf: None) -> None:
    """What counts of joined tables, of counts, of grouped rows, and of what nothing is known."""
    books = Book.objects.all()

    def depends_on(queryset: Any) -> dict[str, str]:
        explanation = live(queryset).live_explain()
        return {each.table: str(each).partition(": ")[2] for each in explanation.depends_on}

    assert depends_on(books.filter(author__name="Ann", pages__gte=3).values("title")) == {
        "testapp_author": "name = 'Ann'; id, name",
        "testapp_book": "author_id among those of testapp_author.id where name = 'Ann' and pages >= 3;"
        " author_id, pages, title",
    }
    assert depends_on(books.values("title", "author__name")) == {
        "testapp_author": "any row, updates only; id, name",
        "testapp_book": "any row; author_id, title",
    }
    assert depends_on(books.filter(author__in=Author.objects.filter(name="Ann")).values("pk")) == {
        "testapp_author": "name = 'Ann'; id, name",
        "testapp_book": "any row; author_id, id",
    }
    assert depends_on(Book.objects.filter(pk__in=Book.objects.filter(pages=1).values("pk")).values("title")) == {
        "testapp_book": "any row; id, title | pages = 1; id, pages"
    }
    assert live(books.order_by("author__name"))[:5].live_explain().window.startswith("rows 0 to 5, in an order")
    assert live(books).live_explain().window == ""
    assert live(books.order_by("pk"))[5:].live_explain().window.startswith("rows 5 to the end by id;")


@pytest.mark.django_db(transaction=True)
def test_stats_show_the_misses_by_reason(shelf: None) -> None:
    """As text and as JSON."""
    queryset = live(Book.objects.filter(price__lt=3).order_by("pk"))
    list(queryset.all())
    list(queryset.all())
    Book.objects.filter(pk=1).update(title="Other")
    list(queryset.all())
    (report,) = json.loads(run("stats", "--format", "json"))["caches"]
    counters = report["counters"]
    expected = {"lookups": 3, "hits": 1, "hits.memory": 1, "misses": 2, "misses.cold": 1, "misses.row": 1}
    assert expected == {name: n for name, n in counters.items() if name.split(".")[0] in ("lookups", "hits", "misses")}
    assert re.search(r"^misses\.row +1$", run("stats"), re.MULTILINE)


def test_every_counter_is_listed() -> None:
    """By the names in the code."""
    source = "\n".join(path.read_text() for path in SOURCES)
    names = set(re.findall(r'\.count(?:_together)?\("([a-z_.]+)"', source))
    assert len(names) >= 12
    listed = set(re.findall(r"`([a-z_.]+(?:\.<\w+>)?)`", METRICS.read_text().split("## ")[0]))
    assert names - listed == set()


def test_every_reason_is_listed() -> None:
    """The reasons that the reader, the witness and the memo of entries have, and the docstring of the record."""
    table = METRICS.read_text().split("## Reasons of a miss")[1]
    listed = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    found = {"row", "bucket", "table"}  # of Scope.cause()
    for name, pattern in (
        ("reader.py", r'"(ahead)"|"(refreshed)"|metrics, "(\w+)"'),
        ("search.py", r'miss(?:, self\.dropped_by)? = "(\w+)"|return "(\w+)"$'),
        ("known_entries.py", r'return "(\w+)"'),
        ("shapes/witness.py", r'DroppedBy(?:\.of)?\("(\w+)"|reason="(\w+)"'),
    ):
        text = (PACKAGE / name).read_text()
        for words in re.findall(f"(?:{pattern})()", text, re.MULTILINE):
            found |= set(words) - {""}
    assert found == listed
