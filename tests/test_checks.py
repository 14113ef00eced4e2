"""System checks: each wrong setting is reported once, by its own id, with a hint that says what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.checks import CheckMessage, Tags, run_checks
from django.core.checks.registry import registry
from django.db import connections, models
from django.test import override_settings
from django.test.utils import isolate_apps

from live_cache import checks, setting_checks
from live_cache.assembly import close_all
from live_cache.location import parse_location
from live_cache.probes import file_system_of
from live_cache.queryset import LiveManager, LiveQuerySet
from tests.server_programs import start_redis

BACKEND = "live_cache.backend.LiveCache"


def cache(location: Any, **others: Any) -> dict[str, Any]:
    """Return one entry of CACHES."""
    return {"BACKEND": BACKEND, "LOCATION": location, **others}


def ids(messages: list[CheckMessage]) -> list[str]:
    """Return the ids, sorted."""
    return sorted(str(message.id) for message in messages)


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    close_all()


@pytest.mark.parametrize(
    ("config", "expected", "named"),
    [
        (cache("memory://"), [], ""),
        (cache("memroy://"), ["live_cache.E001"], "'memroy'"),
        (cache(["redis://h/1", "memory://"]), ["live_cache.E001"], "before"),
        ({"BACKEND": BACKEND}, ["live_cache.E001"], "LOCATION is empty"),
        (cache("null://", OPTIONS={"MAX_ENTRYS": 1}), ["live_cache.E002"], "MAX_ENTRYS"),
        (cache("null://", TIMEOUT="soon"), ["live_cache.E003"], "TIMEOUT"),
        (
            cache("x://", TIMEOUT="x", OPTIONS={"A": 1}),
            ["live_cache.E001", "live_cache.E002", "live_cache.E003"],
            "'x'",
        ),
    ],
)
def test_a_wrong_alias_is_reported(config: dict[str, Any], expected: list[str], named: str) -> None:
    """Each part by its own id; the message names the alias and the part."""
    with override_settings(CACHES={"default": config}):
        messages = checks.check_caches()
    assert expected == ids(messages)
    assert all("CACHES['default']" in message.msg and message.hint for message in messages)
    assert not named or named in messages[0].msg


def test_other_backends_are_not_ours_to_check() -> None:
    """But a project without any live alias is told so."""
    with override_settings(CACHES={"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}):
        messages = checks.check_caches()
    assert ids(messages) == ["live_cache.W005"]
    assert "LOCATION" in str(messages[0].hint)


@pytest.mark.parametrize(
    ("location", "modules", "extra"),
    [("disk:///x", {"diskcache"}, "disk"), ("redis://h/1", {"redis", "django_redis"}, "redis")],
)
def test_a_missing_extra_is_reported(monkeypatch: Any, location: str, modules: set[str], extra: str) -> None:
    """With the command that installs it."""
    monkeypatch.setattr(checks, "find_spec", lambda name: None if name in modules else object())
    with override_settings(CACHES={"default": cache(location)}):
        messages = checks.check_caches()
        assert checks.check_servers() == []
    assert ids(messages) == ["live_cache.E004"]
    assert f"[{extra}]" in str(messages[0].hint)
    assert all(module in messages[0].msg for module in modules)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("LIVE_CACHE_ENABLED", "no", "live_cache.E010"),
        ("LIVE_CACHE_FILL_LEASE_S", -1, "live_cache.E016"),
        ("LIVE_CACHE_FILL_LEASE_S", None, "live_cache.E016"),
        ("LIVE_CACHE_FILL_LEASE_S", float("inf"), "live_cache.E016"),
        ("LIVE_CACHE_VERIFY", "shop.queries.front_page", "live_cache.E021"),
        ("LIVE_CACHE_VERIFY", [1], "live_cache.E021"),
        ("LIVE_CACHE_VERIFY_RATE", 1.5, "live_cache.E017"),
        ("LIVE_CACHE_VERIFY_RATE", "0.1", "live_cache.E017"),
        ("LIVE_CACHE_LEASE_S", 0, "live_cache.E011"),
        ("LIVE_CACHE_UNWATCHED_LEASE_S", -1, "live_cache.E022"),
        ("LIVE_CACHE_UNWATCHED_LEASE_S", "2", "live_cache.E022"),
        ("LIVE_CACHE_LEASE_S", "10", "live_cache.E011"),
        ("LIVE_CACHE_LEASE_S", float("nan"), "live_cache.E011"),
        ("LIVE_CACHE_LEASE_S", True, "live_cache.E011"),
        ("LIVE_CACHE_MAX_LAG_MS", 0, "live_cache.E020"),
        ("LIVE_CACHE_MAX_LAG_MS", "100", "live_cache.E020"),
        ("LIVE_CACHE_MAX_LAG_MS", float("inf"), "live_cache.E020"),
        ("LIVE_CACHE_MAX_LAG_MS", True, "live_cache.E020"),
        ("LIVE_CACHE_ON_LEDGER_LOSS", "ignore", "live_cache.E012"),
        ("LIVE_CACHE_ON_LEDGER_LOSS", ["serve"], "live_cache.E012"),
        ("LIVE_CACHE_TENANT", "acme", "live_cache.E013"),
        ("LIVE_CACHE_WRITING_FUNCTIONS", "add_stock", "live_cache.E014"),
        ("LIVE_CACHE_UNMANAGED_TABLES", ["a_view"], "live_cache.E015"),
        ("LIVE_CACHE_UNMANAGED_TABLES", {"a_view": "shop_product"}, "live_cache.E015"),
        ("LIVE_CACHE_WRITING_FUNCTIONS", {"add_stock": "shop_product"}, "live_cache.E014"),
        ("LIVE_CACHE_WRITING_FUNCTIONS", ["Add_Stock"], "live_cache.E014"),
        ("LIVE_CACHE_LEASES", 3, "live_cache.W004"),
    ],
)
def test_a_wrong_setting_is_reported(name: str, value: Any, expected: str) -> None:
    """And named, with its value or the known names."""
    assert checks.check_settings() == []
    with override_settings(**{name: value}):
        messages = checks.check_settings()
    assert [expected] == ids(messages)
    assert name in messages[0].msg
    assert messages[0].hint


def test_right_settings_pass() -> None:
    """Also those that are no constants."""
    with override_settings(
        LIVE_CACHE_ENABLED=False,
        LIVE_CACHE_FILL_LEASE_S=0,
        LIVE_CACHE_LEASE_S=2,
        LIVE_CACHE_ON_LEDGER_LOSS="refuse",
        LIVE_CACHE_TENANT=lambda alias: alias,
    ):
        assert checks.check_settings() == []


@pytest.mark.parametrize(
    ("location", "options", "expected"),
    [
        ("redis://h/1", {}, ["live_cache.W001"]),
        (["memory://", "disk:///x"], {}, ["live_cache.W001"]),
        ("redis://h/1", {"MAC_KEYS": ["secret"]}, []),
        ("redis://h/1", {"PICKLE": False}, []),
        ("memory://", {}, []),
        ("memory://?ledger=process", {}, ["live_cache.W002"]),
        ("null://", {}, []),
        ("wrong://", {}, []),
    ],
)
def test_what_is_right_for_development_only(location: Any, options: dict[str, Any], expected: list[str]) -> None:
    """Shared pickles without a MAC, and a ledger that other workers do not see."""
    with override_settings(CACHES={"default": cache(location, OPTIONS=options)}), _databases("sqlite"):
        assert expected == ids(checks.check_deployment())


def test_a_ledger_of_one_host_with_a_database_of_many_is_mentioned() -> None:
    """A database server can be written from elsewhere; a file cannot."""
    with _databases("postgresql"):
        with override_settings(CACHES={"default": cache("memory://")}):
            messages = checks.check_deployment()
        assert ids(messages) == ["live_cache.I001"]
        assert "'default'" in messages[0].msg
        with override_settings(CACHES={"default": cache("redis://h/1", OPTIONS={"PICKLE": False})}):
            assert checks.check_deployment() == []


def _databases(vendor: str) -> Any:
    """Let every database be of one vendor."""
    patch = pytest.MonkeyPatch.context()

    class Vendors:
        def __enter__(self) -> None:
            monkeypatch = patch.__enter__()
            for alias in connections:
                monkeypatch.setattr(connections[alias], "vendor", vendor)

        def __exit__(self, *args: Any) -> None:
            patch.__exit__(*args)

    return Vendors()


def test_a_server_that_does_not_answer_is_reported() -> None:
    """Without its password."""
    config = cache(["memory://", "redis://:hunter2@127.0.0.1:1/0"], OPTIONS={"CONNECT_TIMEOUT_S": 0.2})
    with override_settings(CACHES={"default": config}):
        messages = checks.check_servers()
    assert ids(messages) == ["live_cache.E005"]
    assert "127.0.0.1:1" in messages[0].msg
    assert "hunter2" not in str(messages[0])


def test_a_server_that_answers_is_not(redis_url: str) -> None:
    """A real one."""
    with override_settings(CACHES={"default": cache(redis_url)}):
        assert checks.check_servers() == []


def test_a_ledger_that_cannot_be_opened_is_reported(tmp_path: Path) -> None:
    """A file stands where its directory should be."""
    (tmp_path / "taken").write_text("")
    with override_settings(CACHES={"default": cache(f"memory://?ledger={tmp_path}/taken/ledger")}):
        messages = checks.check_ledgers()
    assert ids(messages) == ["live_cache.E006"]
    assert str(tmp_path) in messages[0].msg
    with override_settings(CACHES={"default": cache(f"memory://?ledger={tmp_path}/free")}):
        assert checks.check_ledgers() == []


@isolate_apps("tests.testapp")
def test_a_live_that_means_published_is_mentioned(monkeypatch: Any) -> None:
    """As in Wagtail. Ours, and subclasses of ours, are not."""

    class PublishedQuerySet(models.QuerySet[Any]):
        def live(self) -> Any:
            return self.filter(pk=1)

    class OwnQuerySet(LiveQuerySet[Any]):
        pass

    class Page(models.Model):
        objects = PublishedQuerySet.as_manager()

        class Meta:
            app_label = "testapp"

    class Post(models.Model):
        objects = OwnQuerySet.as_manager()
        others = LiveManager()

        class Meta:
            app_label = "testapp"

    monkeypatch.setattr(checks.apps, "get_models", lambda: [Page, Post])
    messages = checks.check_querysets()
    assert ids(messages) == ["live_cache.W003"]
    assert "PublishedQuerySet" in messages[0].msg
    assert "testapp.Page.objects" in messages[0].msg
    assert "live(queryset)" in str(messages[0].hint)


def test_checks_are_registered_and_pass_here() -> None:
    """``manage.py check`` runs them; those that open connections run with --deploy only."""
    ours = [check for check in registry.get_checks(True) if check.__module__ == "live_cache.checks"]
    assert sorted(check.__name__ for check in ours) == sorted({*checks.__all__} - {"ALL_CHECKS"})
    assert {check.__name__ for check in checks.ALL_CHECKS} == {check.__name__ for check in ours}
    assert [message for message in run_checks(tags=[Tags.caches]) if str(message.id).startswith("live_cache")] == []


def test_every_id_is_used_once() -> None:
    """An id that two checks share cannot be silenced by itself."""
    source = "".join(Path(module.__file__).read_text() for module in (checks, setting_checks))
    found = re.findall(r"live_cache\.[EWI]\d{3}(?=\",)", source) + re.findall(r'"(E\d{3})", parse', source)
    assert len(found) == len(set(found))
    assert len(found) >= 25


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), []),
        (("--maxmemory", "20mb", "--maxmemory-policy", "volatile-lfu"), []),
        (("--maxmemory", "20mb", "--maxmemory-policy", "allkeys-lru"), ["live_cache.W006"]),
        (("--maxmemory", "20mb", "--maxmemory-policy", "noeviction"), ["live_cache.W009"]),
        (("--replicaof", "127.0.0.1", "1"), ["live_cache.E009"]),
    ],
)
def test_a_redis_server_is_asked_how_it_evicts(arguments: tuple[str, ...], expected: list[str]) -> None:
    """And whether it is a primary. The message shows no password."""
    try:
        server = start_redis(arguments=(*arguments, "--requirepass", "secret"))
    except RuntimeError as error:
        pytest.skip(f"REDIS IS MISSING: {error}")
    try:
        with override_settings(CACHES={"default": cache(f"redis://:secret@127.0.0.1:{server.port}/0")}):
            messages = checks.check_servers()
    finally:
        server.stop(kill=True)
    assert expected == ids(messages)
    assert all("secret" not in message.msg and message.hint for message in messages)


def test_an_old_redis_is_refused() -> None:
    """By the version that it names; Valkey names one that is new enough."""
    tier = parse_location("redis://h").tiers[0]
    found = {version: list(checks._check_redis("default", tier, {"redis_version": version})) for version in VERSIONS}
    assert {version: ids(messages) for version, messages in found.items()} == VERSIONS


VERSIONS: dict[str, list[str]] = {"6.0.16": ["live_cache.E008"], "6.2.0": [], "7.2.4": [], "8.0-rc1": []}


def test_a_disk_tier_on_a_network_file_system_is_reported(monkeypatch: Any, tmp_path: Path) -> None:
    """The longest mount point of the path decides, a link is followed."""
    mounts = tmp_path / "mounts"
    mounts.write_text(
        f"/dev/sda / ext4 rw 0 0\nhost:/x {tmp_path}/far nfs4 rw 0 0\ntmpfs {tmp_path}/far/near\\040by tmpfs rw 0 0\n"
    )
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "far")
    assert file_system_of(tmp_path / "far" / "cache", mounts=mounts) == "nfs4"
    assert file_system_of(tmp_path / "link" / "cache", mounts=mounts) == "nfs4"
    assert file_system_of(tmp_path / "farther", mounts=mounts) == "ext4"
    assert file_system_of(tmp_path / "far" / "near by" / "x", mounts=mounts) == "tmpfs"
    assert file_system_of("/", mounts=tmp_path / "none") == ""
    monkeypatch.setattr(checks, "file_system_of", lambda path: "nfs4")
    options = {"MAC_KEYS": ["secret"]}
    with override_settings(CACHES={"default": cache(["memory://", "disk:///x"], OPTIONS=options)}):
        messages = checks.check_deployment()
    (found,) = [message for message in messages if message.id == "live_cache.W007"]
    assert "nfs4" in found.msg


def test_culling_over_redis_is_reported() -> None:
    """The option would do nothing."""
    with override_settings(CACHES={"default": cache("redis://h/1", OPTIONS={"CULL_FREQUENCY": 3})}):
        assert ids(checks.check_caches()) == ["live_cache.W008"]
    with override_settings(CACHES={"default": cache("memory://", OPTIONS={"CULL_FREQUENCY": 3})}):
        assert ids(checks.check_caches()) == []
