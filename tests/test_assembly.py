"""What a cache alias is made of: shared by all backend instances, found by alias, dropped when the settings change."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.cache import caches, close_caches
from django.db import connections
from django.test import override_settings

from live_cache import assembly
from live_cache.assembly import (
    close_all,
    default_ledger_directory,
    get_assembly,
    live_aliases,
    live_assemblies,
    matching_assembly,
)
from live_cache.backend import LiveCache
from live_cache.exceptions import ConfigurationError
from live_cache.ledger.clocks import Dependency
from live_cache.ledger.host import HostLedger
from live_cache.ledger.process import ProcessLedger

BACKEND = "live_cache.backend.LiveCache"
LOCMEM = {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}


def cache(location: Any, **others: Any) -> dict[str, Any]:
    """Return one entry of CACHES."""
    return {"BACKEND": BACKEND, "LOCATION": location, **others}


@pytest.fixture(autouse=True)
def _fresh_assemblies() -> Iterator[None]:
    close_all()
    yield
    close_all()


@pytest.fixture
def project_directory(tmp_path: Path) -> Iterator[Path]:
    """Give the project a database of its own, and remove the ledger that it gets by itself."""
    name = connections["default"].settings_dict["NAME"]
    connections["default"].settings_dict["NAME"] = str(tmp_path / "db.sqlite3")
    directory = default_ledger_directory()
    yield directory
    connections["default"].settings_dict["NAME"] = name
    close_all()
    shutil.rmtree(directory, ignore_errors=True)


def test_an_alias_has_the_same_parts_each_time_and_in_every_thread() -> None:
    """Django makes backend instances per thread; the memory is one."""
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(get_assembly())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [get_assembly()] * 8 == found
    assert all(part is get_assembly() for part in found)


def test_a_request_end_drops_nothing() -> None:
    """Django closes caches after each request; memory and its entries survive."""
    store = get_assembly().store
    store.put("live/x", b"1")
    close_caches()
    assert get_assembly().store is store
    assert store.get("live/x") == b"1"


def test_other_settings_make_other_parts() -> None:
    """override_settings gives another assembly, and afterwards an empty one again."""
    before = get_assembly()
    with override_settings(CACHES={"default": cache("memory://?ledger=process", OPTIONS={"MAX_ENTRIES": 5})}):
        assert get_assembly() is not before
        assert get_assembly().store is not before.store
    assert get_assembly() is not before


def test_an_unknown_alias_names_the_live_ones() -> None:
    """As does an alias with another backend."""
    with override_settings(
        CACHES={"default": LOCMEM, "near": cache("memory://?ledger=process"), "off": cache("null://")}
    ):
        with pytest.raises(ConfigurationError, match=r"'nope' is not in CACHES.*: 'near', 'off'"):
            get_assembly("nope")
        with pytest.raises(ConfigurationError, match=r"'default' has the BACKEND '.*LocMemCache'.*: 'near', 'off'"):
            get_assembly("default")


def test_a_wrong_configuration_names_its_alias() -> None:
    """The message of the part that is wrong comes after the alias."""
    with (
        override_settings(CACHES={"default": cache("memroy://")}),
        pytest.raises(ConfigurationError, match=r"CACHES\['default'\]: LOCATION names 'memroy://'"),
    ):
        get_assembly()


def test_every_live_alias_is_found_and_subclasses_count() -> None:
    """A write must reach the ledger of each; a backend that cannot be imported is somebody else's error."""
    with override_settings(
        CACHES={
            "default": cache("memory://?ledger=process"),
            "sub": {**cache("null://"), "BACKEND": "tests.test_assembly.OwnCache"},
            "other": LOCMEM,
            "broken": {"BACKEND": "nowhere.Cache"},
        }
    ):
        assert live_aliases() == ("default", "sub")
        assert [get_assembly("default"), get_assembly("sub")] == list(live_assemblies())


def test_aliases_of_one_place_share_store_and_ledger(tmp_path: Path) -> None:
    """A second alias with another TIMEOUT is the same cache; one with another KEY_PREFIX is not."""
    disk = f"disk:///{tmp_path}/d".replace("////", "///")
    with override_settings(
        CACHES={
            "a": cache(["memory://", disk]),
            "b": cache(["memory://", disk], TIMEOUT=5, VERSION=2),
            "c": cache(["memory://", disk], KEY_PREFIX="other"),
        }
    ):
        a, b, c = (get_assembly(alias) for alias in "abc")
        assert a.store is b.store
        assert a.ledger is b.ledger
        assert (a.timeout_s, b.timeout_s) == (300.0, 5.0)
        a.store.put("live/x", b"1")
        assert a.store.get("live/x") == b"1"
        assert not c.store.exists("live/x")
        c.store.clear()
        assert a.tiers[1].get("live/x") == b"1"


def test_a_backend_finds_the_alias_that_is_configured_like_it() -> None:
    """Django gives a backend its configuration, not its alias."""
    with override_settings(
        CACHES={"default": cache("memory://?ledger=process"), "v2": cache("memory://?ledger=process", VERSION=2)}
    ):
        assert matching_assembly("memory://?ledger=process", {"VERSION": 2}) is get_assembly("v2")
        assert caches["v2"].assembly is get_assembly("v2")
        assert matching_assembly("null://", {}).alias == ""


def test_plain_values_live_in_the_farthest_tier(tmp_path: Path) -> None:
    """Nothing else would be seen by other processes."""
    with override_settings(CACHES={"default": cache(["memory://", f"disk://{tmp_path}/d"])}):
        assert get_assembly().plain_store is get_assembly().tiers[1]
        assert get_assembly().plain_store.name == "disk"


def test_the_ledger_of_memory_alone_is_a_file_of_the_host(project_directory: Path) -> None:
    """Several workers are safe without any configuration."""
    with override_settings(CACHES={"default": cache("memory://")}):
        ledger = get_assembly().ledger
        assert isinstance(ledger, HostLedger)
        assert project_directory == ledger.directory


def test_the_ledger_can_be_chosen(tmp_path: Path) -> None:
    """By a directory, or for one process."""
    with override_settings(
        CACHES={
            "process": cache("memory://?ledger=process"),
            "own": cache(f"memory://?ledger={tmp_path}/own"),
            "disk": cache(f"disk://{tmp_path}/d"),
            "null": cache("null://"),
        }
    ):
        assert isinstance(get_assembly("process").ledger, ProcessLedger)
        assert isinstance(get_assembly("null").ledger, ProcessLedger)
        own, disk = get_assembly("own").ledger, get_assembly("disk").ledger
        assert isinstance(own, HostLedger)
        assert isinstance(disk, HostLedger)
        assert [tmp_path / "own", tmp_path / "d" / "ledger"] == [own.directory, disk.directory]


def test_redis_holds_store_and_ledger_by_one_connection(redis_url: str) -> None:
    """An entry and its clocks are read in one round trip, so they share a connection."""
    with override_settings(CACHES={"default": cache(["memory://", redis_url], KEY_PREFIX="shop")}):
        found = get_assembly()
        assert found.ledger.name == "redis"
        assert [store.name for store in found.tiers] == ["memory", "redis"]
        found.store.put("live/x", b"1")
        assert found.tiers[1].get("live/x") == b"1"


@pytest.mark.parametrize("prefixes", [("", "a"), ("a", "ab"), ("a", "a:entry:"), ("a", "a:ledger"), ("", ":entry:")])
def test_prefixes_never_begin_with_another(prefixes: tuple[str, str], redis_url: str) -> None:
    """Whatever KEY_PREFIX holds: clearing one cache leaves entries, values and clocks of the other."""
    with override_settings(
        CACHES={str(n): cache(redis_url, KEY_PREFIX=prefix) for n, prefix in enumerate(prefixes)},
        LIVE_CACHE_LEASE_S=60,
    ):
        found = [get_assembly("0"), get_assembly("1")]
        for one, other in (found, found[::-1]):
            other.store.put("live/x", b"1")
            (before,) = other.ledger.read([Dependency("default@x/t")])
            one.store.clear()
            one.ledger.reset()
            assert list(other.store.keys()) == ["live/x"]
            assert before == other.ledger.read([Dependency("default@x/t")])[0]


def test_the_lease_of_the_settings_reaches_the_ledger() -> None:
    """And a change of it makes a new ledger."""
    assert get_assembly().ledger.lease_s == 10.0
    with override_settings(LIVE_CACHE_LEASE_S=2.5):
        assert get_assembly().ledger.lease_s == 2.5


@pytest.mark.parametrize(
    ("change", "is_same"),
    [
        ({"USER": "other", "PASSWORD": "x", "HOST": "elsewhere", "OPTIONS": {"a": 1}}, True),
        ({"NAME": "/srv/another.sqlite3"}, False),
    ],
)
def test_the_default_directory_follows_the_database(monkeypatch: Any, change: dict[str, Any], is_same: bool) -> None:
    """What processes of one project may differ in has no part in it."""
    before = default_ledger_directory()
    for name, value in change.items():
        monkeypatch.setitem(connections["default"].settings_dict, name, value)
    assert is_same == (default_ledger_directory() == before)


def test_the_default_directory_of_a_server_knows_its_default_port(monkeypatch: Any) -> None:
    """PORT may be left out in one settings module and written in another."""
    monkeypatch.setattr(connections["default"], "vendor", "postgresql")
    monkeypatch.setitem(connections["default"].settings_dict, "PORT", "")
    left_out = default_ledger_directory()
    monkeypatch.setitem(connections["default"].settings_dict, "PORT", 5432)
    assert left_out == default_ledger_directory()
    monkeypatch.setitem(connections["default"].settings_dict, "PORT", "5433")
    assert left_out != default_ledger_directory()


def test_the_default_directory_takes_relative_paths_and_links_for_what_they_are(
    monkeypatch: Any, tmp_path: Path
) -> None:
    """Two processes with other working directories, or another way to the file, agree."""
    (tmp_path / "db.sqlite3").touch()
    (tmp_path / "link.sqlite3").symlink_to(tmp_path / "db.sqlite3")
    found = set()
    monkeypatch.chdir(tmp_path)
    for name in ("db.sqlite3", str(tmp_path / "db.sqlite3"), tmp_path / "link.sqlite3"):
        monkeypatch.setitem(connections["default"].settings_dict, "NAME", name)
        found.add(default_ledger_directory())
    assert len(found) == 1


def test_the_default_directory_depends_on_the_key_prefix_only_beside_the_database() -> None:
    """Two projects on one database with two prefixes have nothing in common."""
    assert default_ledger_directory("a") != default_ledger_directory("b")
    with override_settings(SECRET_KEY="another", TIME_ZONE="UTC"):
        assert default_ledger_directory("a") == default_ledger_directory("a")


def test_shared_memory_goes_before_the_temporary_directory(monkeypatch: Any, tmp_path: Path) -> None:
    """systemd's PrivateTmp would give two services two ledgers."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    usable = Path("/dev/shm").is_dir() and os.access("/dev/shm", os.W_OK)
    assert default_ledger_directory().parent == (Path("/dev/shm") if usable else tmp_path)
    monkeypatch.setattr(os, "access", lambda *args: False)
    assert default_ledger_directory().parent == tmp_path


def test_a_process_with_other_settings_finds_the_same_ledger(project_directory: Path, run_process: Any) -> None:
    """The child is started afresh; it knows the database and nothing else of this process."""
    found = run_process("from live_cache.assembly import default_ledger_directory as d; result = str(d())").value
    assert str(project_directory) == found


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Needs os.fork().")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_is_not_stopped_by_a_lock_that_the_parent_held() -> None:
    """A worker that is forked while another thread assembles or counts must not wait for ever."""
    metrics = get_assembly().metrics
    metrics.count("lookups")
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with assembly._lock, metrics._lock:
            held.set()
            release.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(10)
    pid = os.fork()
    if pid == 0:
        # The end of a child that waits for a lock.
        signal.alarm(5)
        status = 1
        try:
            metrics.count("lookups")
            status = 0 if metrics.snapshot() == {"lookups": 1} else 2
            close_all()
            get_assembly()
        finally:
            os._exit(status)
    release.set()
    holder.join()
    assert os.waitpid(pid, 0)[1] == 0


def test_finding_an_assembly_is_a_look_up() -> None:
    """The hot path touches no settings: it works while they cannot be read."""
    expected = get_assembly()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly, "settings", None)
        assert get_assembly() is expected


def test_counters_are_exact_under_threads() -> None:
    """Kinds add up to their event, unless it is counted by itself."""
    metrics = get_assembly().metrics

    def count() -> None:
        for _ in range(500):
            metrics.count("misses.stale")
            metrics.count("misses.absent", 2)
            metrics.count("hits")
            metrics.count("hits.memory")

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = {"hits": 2000, "hits.memory": 2000, "misses": 6000, "misses.absent": 4000, "misses.stale": 2000}
    assert expected == metrics.snapshot()


class OwnCache(LiveCache):
    """A project's own subclass."""


def test_the_package_imports_without_its_extras(run_process: Any) -> None:
    """Each driver is imported where it is used; what lacks one says which extra brings it."""
    script = """
import importlib, pkgutil, sys
for name in ("redis", "django_redis", "diskcache", "cachebox", "hiredis"):
    sys.modules[name] = None
import live_cache
for module in pkgutil.walk_packages(live_cache.__path__, "live_cache."):
    importlib.import_module(module.name)
from django.test import override_settings
from live_cache.assembly import get_assembly
from live_cache.exceptions import MissingExtraError
result = []
for location in ("disk:///tmp/live-cache-no-disk", "redis://127.0.0.1:6379/1"):
    with override_settings(CACHES={"default": {"BACKEND": "live_cache.backend.LiveCache", "LOCATION": location}}):
        try:
            get_assembly()
        except MissingExtraError as error:
            result.append(str(error))
"""
    disk, redis = run_process(script).value
    assert "django-live-cache[disk]" in disk
    assert "django-live-cache[redis]" in redis
    assert "CACHES['default']" in redis
