"""
The example project: its load command, its pages over HTTP from a real server, and the proof of ``demo --once``.

It has settings of its own, so everything that needs them runs in processes of its own.
"""

from __future__ import annotations

import http.cookiejar
import os
import re
import socket
import sqlite3
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import pytest

from example_project.airports.proof.compare import difference
from example_project.airports.table import SORTS, TableRequest, TableRequestError
from example_project.database_url import DatabaseUrlError, parse_database_url

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 600
DEADLINE_S = 30.0


def environment(directory: Path) -> dict[str, str]:
    """Return an environment in which the example project keeps its files in *directory*."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LIVE_CACHE_DEMO_")}
    return {
        **kept,
        "DJANGO_SETTINGS_MODULE": "example_project.settings",
        "LIVE_CACHE_DEMO_DIRECTORY": str(directory.resolve()),
        "PYTHONIOENCODING": "utf-8",
        "PYTHONPATH": str(ROOT),
    }


def run(directory: Path, *arguments: str, code: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run manage.py with *arguments*, or Python *code*, and return what it said."""
    command = ["-c", textwrap.dedent(code), *arguments] if code else [str(ROOT / "manage.py"), *arguments]
    return subprocess.run(
        [sys.executable, *command],
        env=environment(directory),
        cwd=directory,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )


def query(directory: Path, sql: str, *parameters: object) -> list[tuple[object, ...]]:
    """Return the rows of *sql*, asked of the database file itself."""
    with closing(sqlite3.connect(directory / "airports.sqlite3", timeout=20)) as connection, connection:
        return connection.execute(sql, parameters).fetchall()


@dataclass
class Answer:
    """What a browser got, after redirects."""

    status: int
    url: str
    body: str
    content_type: str

    @property
    def rows(self) -> list[str]:
        """The table rows of airports, as HTML."""
        return re.findall(r'<tr role="row">\s*<th scope="row".*?</tr>', self.body, flags=re.S)

    @property
    def names(self) -> list[str]:
        """The names in the rows, in order."""
        return [re.search(r"<a [^>]*>(.*?)</a>", row, flags=re.S)[1] for row in self.rows]

    @property
    def badge(self) -> str:
        """The text of the badge, with single spaces."""
        summary = re.search(r"<summary>(.*?)</summary>", self.body, flags=re.S)
        return " ".join(re.sub(r"<[^>]+>", " ", summary[1]).split()) if summary else ""


@dataclass
class Browser:
    """Keeps cookies, follows redirects, and returns errors as answers."""

    base: str
    cookies: http.cookiejar.CookieJar = field(default_factory=http.cookiejar.CookieJar)

    def get(self, path: str) -> Answer:
        return self._open(urllib.request.Request(self.base + path))

    def post(self, path: str, *, token: bool = True, **data: str) -> Answer:
        if token:
            page = self.get("/").body
            data["csrfmiddlewaretoken"] = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page)[1]
        return self._open(urllib.request.Request(self.base + path, data=urllib.parse.urlencode(data).encode()))

    def until_hit(self, path: str) -> Answer:
        """Load *path* until it is a hit: a new clock holds its table back for one lease."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            answer = self.get(path)
            if answer.badge.startswith("hit") or time.monotonic() > deadline:
                return answer
            time.sleep(0.05)

    def _open(self, request: urllib.request.Request) -> Answer:
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(self.cookies))
        try:
            with opener.open(request, timeout=DEADLINE_S) as response:
                return Answer(
                    response.status, response.url, response.read().decode(), response.headers.get_content_type()
                )
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.url, error.read().decode(), error.headers.get_content_type())


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Run ``manage.py demo`` and yield its address and its directory."""
    directory = tmp_path_factory.mktemp("demo")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = directory / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, str(ROOT / "manage.py"), "demo", "--port", str(port), "--limit", str(LIMIT)],
            env=environment(directory),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            deadline = time.monotonic() + DEADLINE_S
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    if server.poll() is not None or time.monotonic() > deadline:
                        pytest.fail(f"The server did not start:\n{log.read_text()}")
                    time.sleep(0.05)
            yield f"http://127.0.0.1:{port}", directory
        finally:
            server.terminate()
            server.wait(DEADLINE_S)


@pytest.fixture
def browser(served: tuple[str, Path]) -> Browser:
    """A visitor without cookies."""
    return Browser(served[0])


@pytest.fixture
def directory(served: tuple[str, Path]) -> Path:
    """Where the server keeps its database."""
    return served[1]


# -- loading ----------------------------------------------------------------------------------------------------------


def test_load_airports_loads_a_spread_and_nothing_twice(tmp_path: Path) -> None:
    """A limited load has many countries; loading again adds only what is missing and keeps what was edited."""
    assert run(tmp_path, "migrate", "--verbosity=0").returncode == 0
    first = run(tmp_path, "load_airports", "--limit", "300")
    assert (first.returncode, first.stderr) == (0, "")
    assert "Loaded 300 airports" in first.stdout
    assert query(tmp_path, "SELECT count(DISTINCT country_id) > 30 FROM airports_airport") == [(1,)]
    query(tmp_path, "UPDATE airports_airport SET name = 'Edited' WHERE id = 1")
    assert "Loaded 0 airports" in run(tmp_path, "load_airports", "--limit", "300").stdout
    assert query(tmp_path, "SELECT count(*), sum(name = 'Edited') FROM airports_airport") == [(300, 1)]
    again = run(tmp_path, "load_airports", "--limit", "200", "--reset").stdout
    assert "Deleted 300 airports" in again
    assert "Loaded 200 airports" in again
    assert query(tmp_path, "SELECT count(*), sum(name = 'Edited') FROM airports_airport") == [(200, 0)]


def test_load_airports_refuses_a_limit_below_one(tmp_path: Path) -> None:
    """A limit of 0 is a mistake that the message names."""
    answer = run(tmp_path, "load_airports", "--limit", "0")
    assert answer.returncode == 1
    assert "--limit must be 1 or more, not 0" in answer.stderr


# -- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite:///var/x.sqlite3", {"NAME": "var/x.sqlite3"}),
        ("sqlite:////tmp/a%20b.sqlite3", {"NAME": "/tmp/a b.sqlite3"}),
        ("postgres://u:p%40ss@db:5433/n", {"USER": "u", "PASSWORD": "p@ss", "HOST": "db", "PORT": "5433", "NAME": "n"}),
        ("mysql://root@127.0.0.1/n", {"USER": "root", "PASSWORD": "", "HOST": "127.0.0.1", "PORT": "", "NAME": "n"}),
    ],
)
def test_database_url(url: str, expected: dict[str, str]) -> None:
    """Each part of a URL arrives unquoted at the right place."""
    database = parse_database_url(url)
    assert expected == {name: database[name] for name in expected}


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("oracle://x/y", "'oracle'"),
        ("postgres://host/", "names no database"),
        ("sqlite://host/x", "three slashes"),
        ("mysql://host:99999/x", "65535"),
    ],
)
def test_database_url_that_is_wrong(url: str, part: str) -> None:
    """A wrong URL is refused with what is wrong about it."""
    with pytest.raises(DatabaseUrlError, match=re.escape(part)):
        parse_database_url(url)


@pytest.mark.parametrize("sort", [*SORTS, *(f"-{name}" for name in SORTS)])
def test_table_request_round_trip(sort: str) -> None:
    """The query string of a request is parsed to the same request."""
    wanted = TableRequest(country="FR", search="a b&c=d", sort=sort, page=7)
    assert TableRequest.parse(dict(urllib.parse.parse_qsl(wanted.query))) == wanted


@pytest.mark.parametrize(
    ("query_string", "status"),
    [
        ("sort=country__code", 400),
        ("sort=--name", 400),
        ("q=" + "x" * 81, 400),
        ("page=0", 404),
        ("page=-1", 404),
        ("page=x", 404),
        ("page=%D9%A1", 404),
        ("page=99999999999", 404),
    ],
)
def test_table_request_that_is_wrong(query_string: str, status: int) -> None:
    """Orders outside the list, long searches and impossible pages are refused."""
    with pytest.raises(TableRequestError) as caught:
        TableRequest.parse(dict(urllib.parse.parse_qsl(query_string)))
    assert caught.value.status == status


# -- comparison -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("live", "plain"),
    [
        (1, 1.0),
        (1, True),
        (0.0, -0.0),
        (Decimal("1.0"), Decimal("1.00")),
        ("1", 1),
        (None, ""),
        ([1, 2], (1, 2)),
        ([1, 2], [2, 1]),
        ([1], [1, 1]),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ([{"a": [1, None]}], [{"a": [1, 0]}]),
    ],
)
def test_difference_sees_values_and_types(live: object, plain: object) -> None:
    """What Python calls equal is still a difference if its type, its text or its order differs."""
    assert difference(live, plain) != ""
    assert difference(plain, plain) == ""


# -- pages ------------------------------------------------------------------------------------------------------------


def test_table_shows_a_page_and_then_hits(browser: Browser) -> None:
    """A page has 50 rows; loaded again it comes from memory without a query."""
    answer = browser.get("/?page=2")
    assert answer.status == 200
    assert len(answer.rows) == 50
    assert "600 airports, 51 to 100 shown" in answer.body
    warm = browser.until_hit("/?page=2")
    assert re.fullmatch(r"hit memory [\d,.]+ (µs|ms) 0 queries", warm.badge)
    assert warm.rows == answer.rows


def test_table_filters_by_country(browser: Browser, directory: Path) -> None:
    """Only the rows of the country are shown, and their count."""
    [(count,)] = query(directory, "SELECT count(*) FROM airports_airport WHERE country_id = 'CA'")
    answer = browser.get("/?country=ca")
    assert f"{count} airports" in answer.body
    assert all('class="country">Canada<' in row for row in answer.rows)


def test_table_searches_names_cities_and_codes(browser: Browser, directory: Path) -> None:
    """A search finds an airport by each of its texts, in any case; one without a match says so."""
    [(icao, iata, name, city)] = query(
        directory,
        "SELECT icao, iata, name, city FROM airports_airport WHERE iata IS NOT NULL AND city <> '' ORDER BY id LIMIT 1",
    )
    for text in (icao, iata, name, city):
        found = browser.get("/?" + urllib.parse.urlencode({"q": str(text).lower()}))
        assert any(f"<code>{icao}</code>" in row for row in found.rows), text
    nothing = browser.get("/?q=zzzzqqqq")
    assert (nothing.status, nothing.rows) == (200, [])
    assert "No airport matches" in nothing.body


def test_table_escapes_what_was_searched(browser: Browser) -> None:
    """A search is shown as text, never as HTML."""
    answer = browser.get("/?" + urllib.parse.urlencode({"q": '"><script>alert(1)</script>'}))
    assert "<script>" not in answer.body
    assert "&lt;script&gt;" in answer.body


@pytest.mark.parametrize(("sort", "direction"), [("elevation", "ASC"), ("-elevation", "DESC")])
def test_table_sorts(browser: Browser, directory: Path, sort: str, direction: str) -> None:
    """The first page is the database's, in the order that was asked for."""
    expected = query(
        directory, f"SELECT icao FROM airports_airport ORDER BY elevation_ft {direction}, id {direction} LIMIT 50"
    )
    answer = browser.get(f"/?sort={sort}")
    assert [icao for (icao,) in expected] == [re.search(r'class="icao"><code>(\w+)<', row)[1] for row in answer.rows]


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("/?sort=password", 400, "There is no order “password”"),
        ("/?page=0", 404, "There is no page “0”"),
        ("/?page=9999", 404, "There is no page 9999 here; the last one is 12"),
        ("/?country=QQ", 404, "There is no country “QQ”"),
        ("/airports/NONE/", 404, "There is no airport “NONE”"),
    ],
)
def test_wrong_addresses_say_what_is_wrong(browser: Browser, path: str, status: int, message: str) -> None:
    """An address that names nothing gets its own status and a sentence."""
    answer = browser.get(path)
    assert answer.status == status
    assert message in answer.body


def test_edit_saves_and_goes_back_to_a_fresh_table(browser: Browser, directory: Path) -> None:
    """After a valid form the table page that it was opened from shows the new name at once, although it was cached."""
    [(icao, country)] = query(directory, "SELECT icao, country_id FROM airports_airport ORDER BY name DESC, id LIMIT 1")
    path = "/?" + urllib.parse.urlencode({"country": country, "sort": "name"})
    assert browser.until_hit(path).badge.startswith("hit")
    back = urllib.parse.urlencode({"back": urllib.parse.urlencode({"country": country})})
    answer = browser.post(
        f"/airports/{icao}/?{back}", name="  AAA edited", city="Here", country=str(country), elevation_ft="12.3"
    )
    assert answer.status == 200
    assert urllib.parse.urlsplit(answer.url).query == f"country={country}"
    assert answer.names[0] == "AAA edited"
    assert "Saved AAA edited" in answer.body
    saved = query(
        directory, "SELECT name, city, elevation_ft, has_iata, iata FROM airports_airport WHERE icao = ?", icao
    )
    assert saved == [("AAA edited", "Here", 12.3, 0, None)]


def test_edit_refuses_what_is_wrong(browser: Browser, directory: Path) -> None:
    """An invalid form is shown again with every reason, and nothing is saved."""
    [before] = query(directory, "SELECT * FROM airports_airport WHERE id = 3")
    icao = before[1]
    answer = browser.post(f"/airports/{icao}/", name="", iata="x1", country="QQ", elevation_ft="99999")
    assert answer.status == 422
    for reason in ("This field is required", "three capital letters", "not one of the available", "less than or equal"):
        assert reason in answer.body
    assert query(directory, "SELECT * FROM airports_airport WHERE id = 3") == [before]


def test_edit_goes_back_to_no_other_site(browser: Browser) -> None:
    """Whatever ``back`` says, the way back is the table."""
    icao = re.search(r'class="icao"><code>(\w+)<', browser.get("/").body)[1]
    answer = browser.get(f"/airports/{icao}/?back=" + urllib.parse.quote("https://example.org/?sort=nothing"))
    assert '<a href="/">Cancel</a>' in answer.body


def test_statistics_show_tiers_counters_and_clocks(browser: Browser) -> None:
    """The statistics page names both tiers, the hits, and a clock for each table that was read."""
    browser.until_hit("/")
    answer = browser.get("/stats/")
    assert answer.status == 200
    for text in ("memory", "disk", "hits", "airports_airport", "airports_country", "host ledger"):
        assert text in answer.body, text


def test_invalidate_makes_the_next_read_a_miss(browser: Browser) -> None:
    """The button marks the table stale: the page is fetched once more, and then hits again."""
    browser.until_hit("/?page=3")
    browser.post("/invalidate/", table="airport")  # goes back to page 1
    assert not browser.get("/?page=3").badge.startswith("hit")
    assert browser.until_hit("/?page=3").badge.startswith("hit")


def test_cache_can_be_turned_off_for_a_visit(browser: Browser, served: tuple[str, Path]) -> None:
    """Off means that this visitor's reads all go to the database; others are not touched."""
    browser.until_hit("/")
    assert browser.post("/cache/", state="off").badge.startswith("cache off database")
    assert re.search(r"3 queries$", browser.get("/").badge)
    assert Browser(served[0]).until_hit("/").badge.startswith("hit")
    assert browser.post("/cache/", state="on").badge.startswith("hit")


@pytest.mark.parametrize("path", ["/invalidate/", "/cache/"])
def test_buttons_want_a_post_with_a_token(browser: Browser, path: str) -> None:
    """A link or another site can press no button."""
    assert browser.get(path).status == 405
    assert browser.post(path, token=False, table="airport", state="off").status == 403


def test_invalidate_names_the_tables_that_exist(browser: Browser) -> None:
    """An unknown table is a bad request."""
    answer = browser.post("/invalidate/", table="auth_user")
    assert answer.status == 400
    assert "airport or country" in answer.body


def test_style_sheet_is_served(browser: Browser) -> None:
    """The pages have their style without a web server in front."""
    path = re.search(r'rel="stylesheet" href="([^"]+)"', browser.get("/").body)[1]
    answer = browser.get(path)
    assert (answer.status, answer.content_type) == (200, "text/css")


# -- the proof --------------------------------------------------------------------------------------------------------


def test_demo_once_passes(tmp_path: Path) -> None:
    """Every warm read makes no query and every write is seen: exit 0. The data is the same afterwards."""
    first = run(tmp_path, "demo", "--once", "--limit", "400")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "PASSED" in first.stdout.splitlines()[-1]
    assert "warm: memory" in first.stdout
    assert "new process: disk" in first.stdout
    writes = re.findall(r"^(\S.*?)  +(\d) of 8  +(yes|NO)$", first.stdout, flags=re.M)
    assert len(writes) == 10
    assert {fresh for _, _, fresh in writes} == {"yes"}
    assert [name for name, changed, _ in writes if changed == "0"] == ["rolled-back transaction"]
    before = query(tmp_path, "SELECT * FROM airports_airport ORDER BY id")
    again = run(tmp_path, "demo", "--once", "--no-load")
    assert again.returncode == 0, again.stdout + again.stderr
    assert query(tmp_path, "SELECT * FROM airports_airport ORDER BY id") == before


def test_demo_once_fails_on_a_stale_read(tmp_path: Path) -> None:
    """A write that Django cannot see leaves the cache stale; the demonstration notices, says where, and exits 1."""
    answer = run(
        tmp_path,
        "manage.py",
        "demo",
        "--once",
        "--limit",
        "200",
        code="""
        import sqlite3, sys
        import django
        django.setup()
        from django.core.management import execute_from_command_line
        from django.db import connection
        from example_project.airports.proof.writes import WRITES, Write

        def behind_the_back(subject):
            other = sqlite3.connect(connection.settings_dict["NAME"], timeout=20)
            with other:
                other.execute("UPDATE airports_airport SET city = 'Unseen' WHERE id = ?", [subject.airport_pk])
            other.close()

        WRITES[:] = [Write("sqlite3 alone", behind_the_back)]
        execute_from_command_line(sys.argv[1:])
        """,
    )
    assert answer.returncode == 1, answer.stdout + answer.stderr
    assert re.search(r"^sqlite3 alone  .* NO$", answer.stdout, flags=re.M)
    assert "not 'Unseen'" in answer.stdout
    assert answer.stdout.splitlines()[-1].startswith("FAILED")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--database", "oracle://x/y"], "unknown scheme 'oracle'"),
        (["--redis", "http://127.0.0.1"], "'http'"),
        (["--redis", "memory://"], "is no Redis"),
        (["--database", "postgres://nobody@127.0.0.1:1/none"], "The database cannot be used"),
        (["--no-load"], "There are no airports"),
    ],
)
def test_demo_explains_what_is_wrong(tmp_path: Path, arguments: list[str], message: str) -> None:
    """A wrong option, a database out of reach or an empty one is one sentence, without a traceback."""
    answer = run(tmp_path, "demo", "--once", *arguments)
    assert answer.returncode == 1
    assert message in answer.stderr
    assert "Traceback" not in answer.stderr
