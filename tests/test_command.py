"""``manage.py live_cache``: what it shows, what it clears, and what it says of what does not exist."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.cache import caches
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import override_settings
from django.test.utils import CaptureQueriesContext

from live_cache.assembly import Assembly, close_all, get_assembly
from live_cache.ledger.clocks import Dependency
from live_cache.management.tables import as_table
from live_cache.queryset import live
from tests.testapp.models import Author, Country

BACKEND = "live_cache.backend.LiveCache"


def run(*args: str) -> str:
    """Return what the command writes."""
    stdout = io.StringIO()
    call_command("live_cache", *args, stdout=stdout, stderr=stdout)
    return stdout.getvalue()


def run_json(*args: str) -> Any:
    """Return what the command writes with --format json."""
    return json.loads(run(*args, "--format", "json"))


@pytest.fixture
def assembly(tmp_path: Path) -> Iterator[Assembly]:
    """One cache of two tiers, and another one beside it."""
    with override_settings(
        CACHES={
            "default": {"BACKEND": BACKEND, "LOCATION": ["memory://", f"disk://{tmp_path}/cache"], "TIMEOUT": None},
            "near": {"BACKEND": BACKEND, "LOCATION": "memory://?ledger=process"},
            "other": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
        },
        LIVE_CACHE_LEASE_S=0.01,
    ):
        yield get_assembly()
    close_all()


@pytest.fixture
def reads(assembly: Assembly) -> Callable[..., int]:
    """Return a function that reads a queryset live and returns how many queries that took."""

    def read(queryset: Any, key: str | None = None) -> int:
        with CaptureQueriesContext(connection) as captured:
            list(live(queryset.all(), key))
        return len(captured)

    return read


def _warm(read: Callable[..., int], queryset: Any, key: str | None = None) -> None:
    """Read until it is a hit: a newborn clock holds its table for one lease."""
    for _ in range(200):
        if read(queryset, key) == 0:
            return
        time.sleep(0.01)  # the lease of the host ledger runs by the system's clock
    raise AssertionError("It never became a hit.")


class TestClear:
    """clear: by model, key, prefix, or everything."""

    @pytest.mark.django_db(transaction=True)
    def test_a_model_is_marked_stale_and_no_other(self, reads: Any) -> None:
        """One tick of its table."""
        Author.objects.create(name="a")
        Country.objects.create(code="de")
        _warm(reads, Author.objects)
        _warm(reads, Country.objects)
        assert "testapp.Author" in run("clear", "--model", "testapp.Author")
        assert reads(Country.objects) == 0
        assert reads(Author.objects) == 1

    @pytest.mark.django_db(transaction=True)
    def test_a_key_is_marked_stale_and_no_other(self, reads: Any) -> None:
        """Segment by segment: ``home`` is not ``homes``."""
        Author.objects.create(name="a")
        for key in ("home", "home/authors", "homes"):
            _warm(reads, Author.objects, key)
        report = run_json("clear", "--key", "home")
        assert report == {"cache": "default", "dry_run": False, "what": "key", "name": "home", "entries": 2}
        assert reads(Author.objects, "homes") == 0
        assert reads(Author.objects, "home") == 1
        assert reads(Author.objects, "home/authors") == 1

    @pytest.mark.django_db(transaction=True)
    def test_a_key_as_it_is_listed_is_marked_stale(self, reads: Any) -> None:
        """Whether the caller or the query gave it."""
        Author.objects.create(name="a")
        for key in (None, "home"):
            _warm(reads, Author.objects, key)
            (listed,) = run_json("keys", "--prefix", key or "testapp.author")["keys"]
            run("clear", "--key", listed.rpartition("/")[0])
            assert reads(Author.objects, key) == 1

    @pytest.mark.django_db(transaction=True)
    def test_a_prefix_drops_entries(self, reads: Any, assembly: Assembly) -> None:
        """From every tier that this process sees."""
        Author.objects.create(name="a")
        _warm(reads, Author.objects, "home/authors")
        _warm(reads, Author.objects)
        assert run_json("clear", "--prefix", "home")["entries"] >= 1
        assert [key for key in run_json("keys")["keys"] if key.startswith("home")] == []
        assert len(run_json("keys", "--prefix", "testapp.author")["keys"]) == 1

    @pytest.mark.django_db(transaction=True)
    def test_all_drops_everything_of_one_cache(self, reads: Any, assembly: Assembly) -> None:
        """Live entries, plain values and epochs; another cache keeps its own."""
        Author.objects.create(name="a")
        _warm(reads, Author.objects)
        caches["default"].set("key", 1)
        caches["near"].set("key", 1)
        epochs = {info.clock: info.epoch for info in assembly.ledger.clocks()}
        report = run_json("clear", "--all", "--noinput")
        assert report["clocks"] == len(epochs) > 0
        assert run_json("keys", "--all")["keys"] == []
        assert caches["default"].get("key") is None
        assert caches["near"].get("key") == 1
        assert all(info.epoch != epochs[info.clock] for info in assembly.ledger.clocks())

    def test_all_asks_before(self, assembly: Assembly, monkeypatch: Any) -> None:
        """Only the word yes is a yes."""
        assembly.store.put("live/a.b/c/d", b"x")
        monkeypatch.setattr("builtins.input", lambda prompt: "y")
        with pytest.raises(CommandError, match="Nothing was cleared"):
            run("clear", "--all")
        assert assembly.store.exists("live/a.b/c/d")
        monkeypatch.setattr("builtins.input", lambda prompt: "yes")
        assert "plain value" in run("clear", "--all")
        assert not assembly.store.exists("live/a.b/c/d")

    @pytest.mark.django_db(transaction=True)
    def test_a_dry_run_changes_nothing(self, reads: Any, assembly: Assembly) -> None:
        """And says what would go."""
        Author.objects.create(name="a")
        _warm(reads, Author.objects, "home")
        for target in (["--model", "testapp.Author"], ["--key", "home"], ["--prefix", "home"], ["--all"]):
            assert "Would clear" in run("clear", *target, "--dry-run")
            assert reads(Author.objects, "home") == 0

    @pytest.mark.parametrize(
        ("args", "named"),
        [
            (["--model", "testapp.Bok"], ["'testapp.Bok'", "testapp.Book"]),
            (["--model", "Book"], ["'Book'", "testapp.Book"]),
            (["--model", "nowhere.Thing"], ["'nowhere.Thing'", "testapp.Country"]),
            (["--key", "missing"], ["'missing'", "home/x/rows"]),
            (["--key", "missing", "--dry-run"], ["'missing'", "home/x/rows"]),
            (["--model", "testapp.Book", "--using", "nope"], ["'nope'", "'default', 'near'"]),
            (["--model", "testapp.Book", "--using", "other"], ["'other'", "'default', 'near'"]),
            ([], ["--model", "--key", "--prefix", "--all"]),
            (["--all", "--key", "x"], ["not allowed with"]),
        ],
    )
    def test_what_does_not_exist_is_named_with_what_does(
        self, assembly: Assembly, args: list[str], named: list[str]
    ) -> None:
        """A CommandError, so the exit status is not 0."""
        assembly.store.put("live/home/x/rows", b"x")
        with pytest.raises(CommandError) as caught:
            run("clear", *args)
        assert [part for part in named if part not in str(caught.value)] == []

    def test_a_key_that_only_other_processes_may_hold_is_no_error(self, assembly: Assembly) -> None:
        """Nobody can look into their memory; the tick reaches it."""
        assert run_json("clear", "--key", "anything", "--using", "near")["entries"] == 0

    def test_an_unreachable_server_is_an_error_of_the_command(self) -> None:
        """Not a traceback."""
        config = {"BACKEND": BACKEND, "LOCATION": "redis://127.0.0.1:1/0", "OPTIONS": {"CONNECT_TIMEOUT_S": 0.1}}
        with override_settings(CACHES={"default": config}):
            for args in (
                ["clear", "--all", "--noinput"],
                ["clear", "--key", "x"],
                ["clear", "--prefix", "x"],
                ["keys"],
            ):
                with pytest.raises(CommandError, match=r"127\.0\.0\.1:1"):
                    run(*args)
            report = run_json("stats")["caches"][0]
            assert "127.0.0.1:1" in report["ledger"]["error"]
        close_all()


class TestStats:
    """stats: tiers, ledger, counters."""

    def test_json_has_every_live_cache(self, assembly: Assembly) -> None:
        """Numbers are numbers."""
        assembly.store.put("live/a", b"1234")
        assembly.metrics.count("hits.disk", 2)
        assembly.ledger.read([Dependency("default@x/table")])
        default, near = run_json("stats")["caches"]
        assert [default["alias"], near["alias"]] == ["default", "near"]
        assert [tier["name"] for tier in default["tiers"]] == ["memory", "disk"]
        assert default["tiers"][0]["entries"] == 1
        assert default["ledger"]["kind"] == "host"
        assert [clock["clock"] for clock in default["ledger"]["clocks"]] == ["default@x/table"]
        assert default["counters"] == {"hits": 2, "hits.disk": 2}
        assert default["counters_of"] == "this process"
        assert near["ledger"]["kind"] == "process"

    def test_using_chooses_one(self, assembly: Assembly) -> None:
        """And names what exists where it does not."""
        assert [report["alias"] for report in run_json("stats", "--using", "near")["caches"]] == ["near"]
        with pytest.raises(CommandError, match="'default', 'near'"):
            run("stats", "--using", "nope")

    def test_the_table_holds_the_same(self, assembly: Assembly) -> None:
        """For people."""
        assembly.ledger.read([Dependency("default@x/table")])
        assembly.metrics.count("lookups", 3)
        text = run("stats")
        for part in ("Cache 'default'", "memory", "disk", "Ledger: host, 1 clocks", "default@x/table", "lookups"):
            assert part in text

    def test_without_a_live_cache_it_says_so(self) -> None:
        """What to look for is named."""
        with (
            override_settings(CACHES={"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}),
            pytest.raises(CommandError, match="LiveCache"),
        ):
            run("stats")


class TestKeys:
    """keys: names of live entries."""

    def test_live_keys_without_their_namespace(self, assembly: Assembly) -> None:
        """Each once, though two tiers hold it; under a prefix, segment by segment."""
        for key in ("live/home/x/rows", "live/home/x/count", "live/homes/x/rows", "plain/:1:key"):
            assembly.store.put(key, b"x")
        assert run_json("keys")["keys"] == ["home/x/count", "home/x/rows", "homes/x/rows"]
        assert run_json("keys", "--prefix", "home")["keys"] == ["home/x/count", "home/x/rows"]
        assert run_json("keys", "--all", "--prefix", "plain")["keys"] == ["plain/:1:key"]
        assert len(run_json("keys", "--all")["keys"]) == 4
        assert "homes/x/rows" in run("keys")

    def test_a_limit_says_that_there_are_more(self, assembly: Assembly) -> None:
        """And must be a number."""
        for number in range(5):
            assembly.store.put(f"live/k/{number}", b"x")
        report = run_json("keys", "--limit", "3")
        assert len(report["keys"]) == 3
        assert report["is_cut"] is True
        assert run_json("keys", "--limit", "5")["is_cut"] is False
        assert "More than 3 keys" in run("keys", "--limit", "3")
        with pytest.raises(CommandError, match="at least 1"):
            run("keys", "--limit", "0")

    def test_no_keys(self, assembly: Assembly) -> None:
        """Nothing is nothing, and no error."""
        assert run("keys").strip() == "No keys."


class TestExplain:
    """explain: how a query is cached, or why not."""

    @pytest.mark.django_db
    def test_a_query_is_explained(self, assembly: Assembly) -> None:
        """By options that look like the calls."""
        args = ["explain", "testapp.Book", "--filter", "pages__gt=3", "author__name=x", "--order-by=-created,pk"]
        report = run_json(*args)
        assert isinstance(report, dict)
        assert "testapp_author" in json.dumps(report)
        assert "testapp_author" in run(*args)
        run("explain", "testapp.Book", "--filter", "pk__in=1,2", "--filter", "rating__isnull=true")

    @pytest.mark.parametrize(
        ("args", "named"),
        [
            (["testapp.Bok"], "testapp.Book"),
            (["testapp.Book", "--filter", "nope=1"], "published"),
            (["testapp.Book", "--filter", "pages=many"], "many"),
            (["testapp.Book", "--filter", "isbn=many"], "many"),
            (["testapp.Book", "--filter", "pages"], "field=value"),
            (["testapp.Book", "--order-by", "nope"], "published"),
            (["testapp.Book", "--using", "nope"], "'default', 'near'"),
        ],
    )
    def test_what_does_not_exist_is_named_with_what_does(self, assembly: Assembly, args: list[str], named: str) -> None:
        """Fields too."""
        with pytest.raises(CommandError) as caught:
            run("explain", *args)
        assert named in str(caught.value)


def test_without_a_subcommand_it_names_them() -> None:
    """As any command does that lacks an argument."""
    with pytest.raises(CommandError, match=re.escape("clear|stats|keys|explain")):
        run()


def test_tables_are_aligned() -> None:
    """Numbers to the right, nothing is a dash."""
    expected = "name    n\n----  ---\na       5\nbb      -\nccc   123"
    assert expected == as_table(("name", "n"), [("a", 5), ("bb", None), ("ccc", 123)])


def test_doctor_measures_the_parts(tmp_path: Path) -> None:
    """Each tier and the ledger, and what every check says; an untouched cache has no errors."""
    location = ["memory://", f"disk://{tmp_path}/cache"]
    with override_settings(CACHES={"default": {"BACKEND": BACKEND, "LOCATION": location}}):
        report = run_json("doctor")
        text = run("doctor")
        assert list(get_assembly().plain_store.keys()) == []
    (found,) = report["caches"]
    assert [part["part"] for part in found["parts"]] == ["memory", "disk", "ledger: host"]
    assert all(part["get_us"] > 0 and part["error"] is None for part in found["parts"])
    assert "live_cache.W001" in [check["id"] for check in report["checks"]]
    assert "W001" in text
    assert "ledger: host" in text


@pytest.mark.parametrize("format_options", [(), ("--format", "json")])
def test_doctor_fails_on_an_error(format_options: tuple[str, ...]) -> None:
    """A server that does not answer: the report is written, and the command fails."""
    stdout = io.StringIO()
    config = {"BACKEND": BACKEND, "LOCATION": "redis://:hunter2@127.0.0.1:1/0"}
    with (
        override_settings(CACHES={"default": config}),
        pytest.raises(CommandError, match="1 caches"),
    ):
        call_command("live_cache", "doctor", *format_options, stdout=stdout)
    assert "live_cache.E005" in stdout.getvalue()
    assert "hunter2" not in stdout.getvalue()
