"""LOCATION and OPTIONS: what is accepted, and that what is not names itself and says what to do."""

from __future__ import annotations

from typing import Any

import pytest

from live_cache.cache_options import KNOWN_OPTIONS, Options, parse_options, parse_timeout
from live_cache.exceptions import ConfigurationError
from live_cache.location import LedgerChoice, choose_ledger, parse_location


@pytest.mark.parametrize(
    ("location", "kinds"),
    [
        ("memory://", ["memory"]),
        ("memory://?ledger=process", ["memory"]),
        ("memory://?ledger=/run/shop", ["memory"]),
        ("null://", ["null"]),
        (["memory://", "disk:///var/cache/shop"], ["memory", "disk"]),
        (("memory://", "disk:///a", "redis://:secret@cache:6379/1?protocol=3"), ["memory", "disk", "redis"]),
        ("rediss://cache/0?ssl_cert_reqs=required", ["redis"]),
        ("unix:///run/redis.sock?db=3", ["redis"]),
        (["disk:///fast", "disk:///slow"], ["disk", "disk"]),
        (["redis://near/0", "redis://far/0"], ["redis", "redis"]),
    ],
)
def test_a_location_names_tiers_nearest_first(location: Any, kinds: list[str]) -> None:
    """One URL or a list of them; the order is kept."""
    assert kinds == [tier.kind for tier in parse_location(location).tiers]


def test_a_disk_path_is_unquoted() -> None:
    """A space in a path is written as %20, as in every URL."""
    assert parse_location("disk:///var/my%20cache/").tiers[0].path == "/var/my cache"


@pytest.mark.parametrize(
    ("location", "named"),
    [
        ("", ["LOCATION is empty", "memory://"]),
        ([], ["LOCATION is empty"]),
        (None, ["None", "list of URLs"]),
        ("127.0.0.1:6379", ["'127.0.0.1:6379'", "memory://"]),
        ("memcached://host", ["'memcached'", "disk:///var/cache/shop", "redis://"]),
        ([b"memory://"], ["b'memory://'"]),
        ("memory://?size=3", ["size", "Known are: ledger"]),
        ("memory://host", ["takes no host", "'memory://'"]),
        ("memory://?ledger=proces", ["'proces'", "absolute directory"]),
        ("memory://?ledger=", ["neither 'process' nor"]),
        ("null://?a=1", ["option a", "takes none"]),
        ("disk://var/cache", ["not absolute", "three slashes"]),
        ("disk://", ["not absolute"]),
        ("disk:///", ["not absolute"]),
        ("disk:///x?ttl=3", ["ttl", "takes none"]),
        ("redis://", ["without a host", "redis://127.0.0.1:6379/1"]),
        ("redis://host:port/1", ["port"]),
        ("redis://host/1?timeuot=3", ["timeuot", "socket_timeout"]),
        ("unix://", ["without a socket"]),
        (["redis://host/1", "memory://"], ["'redis://host/1' before 'memory://'", "['memory://', 'redis://host/1']"]),
        (["disk:///x", "memory://"], ["'disk:///x' before 'memory://'"]),
        (["memory://", "memory://"], ["'memory://' twice"]),
        (["disk:///x", "disk:///x/"], ["'disk:///x/' twice"]),
        (["memory://", "null://"], ["null://", "stands alone"]),
        (["memory://?ledger=process", "redis://host/1"], ["farthest tier", "write 'memory://'"]),
        (["memory://?ledger=/run/x", "disk:///x"], ["farthest tier"]),
    ],
)
def test_a_wrong_location_names_itself_and_what_to_do(location: Any, named: list[str]) -> None:
    """The message holds the offending part and the choice."""
    with pytest.raises(ConfigurationError) as caught:
        parse_location(location)
    assert [part for part in named if part not in str(caught.value)] == []


@pytest.mark.parametrize(
    "location", [["redis://me:hunter2@host/1", "memory://"], "redis://me:hunter2@host/1?nope=1", "redos://:hunter2@h/1"]
)
def test_no_message_holds_a_password(location: Any) -> None:
    """Messages end in logs."""
    with pytest.raises(ConfigurationError) as caught:
        parse_location(location)
    assert "hunter2" not in str(caught.value)
    assert "***@h" in str(caught.value)


@pytest.mark.parametrize(
    ("location", "choice"),
    [
        ("memory://", LedgerChoice("host")),
        ("memory://?ledger=process", LedgerChoice("process")),
        ("memory://?ledger=/run/shop", LedgerChoice("host", directory="/run/shop")),
        ("null://", LedgerChoice("process")),
        (["memory://", "disk:///x"], LedgerChoice("host", directory="/x/ledger")),
        (["disk:///near", "disk:///far"], LedgerChoice("host", directory="/far/ledger")),
        (["memory://", "disk:///x", "redis://h/1"], LedgerChoice("redis", url="redis://h/1")),
        (["redis://near/0", "redis://far/0"], LedgerChoice("redis", url="redis://far/0")),
    ],
)
def test_the_ledger_lives_in_the_farthest_shared_tier(location: Any, choice: LedgerChoice) -> None:
    """Redis if there is one, else a file of this host, also for memory alone."""
    assert choice == choose_ledger(parse_location(location))


def test_options_have_defaults_and_keep_what_is_given() -> None:
    """Text keys become bytes; a single key may stand without a list."""
    assert Options() == parse_options({})
    given = {"MAX_ENTRIES": 5, "MAC_KEYS": ["a", b"b"], "PICKLE": False, "SOCKET_TIMEOUT_S": 2}
    assert Options(max_entries=5, mac_keys=(b"a", b"b"), pickle=False, socket_timeout_s=2.0) == parse_options(given)
    assert parse_options({"MAC_KEYS": "alone"}).mac_keys == (b"alone",)


def test_an_unknown_option_is_refused_with_the_known_ones() -> None:
    """A misspelt option would otherwise be ignored silently."""
    with pytest.raises(ConfigurationError) as caught:
        parse_options({"MAX_ENTRYS": 5, "PROMOTE": "never"})
    assert "MAX_ENTRYS" in str(caught.value)
    assert all(name in str(caught.value) for name in KNOWN_OPTIONS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAX_ENTRIES", 0),
        ("MAX_ENTRIES", True),
        ("MAX_BYTES", "64MB"),
        ("DISK_MAX_BYTES", -1),
        ("PROMOTE", True),
        ("PROMOTE", 0),
        ("PROMOTE", "sometimes"),
        ("PICKLE", None),
        ("CONNECT_TIMEOUT_S", 0),
        ("SOCKET_TIMEOUT_S", float("inf")),
        ("SOCKET_TIMEOUT_S", float("nan")),
        ("MAC_KEYS", {"a"}),
        ("MAC_KEYS", [""]),
        ("MAC_KEYS", [5]),
    ],
)
def test_a_wrong_value_of_an_option_names_the_option(name: str, value: Any) -> None:
    """Types and ranges are checked."""
    with pytest.raises(ConfigurationError, match=name):
        parse_options({name: value})


def test_a_message_about_mac_keys_never_holds_a_key() -> None:
    """A secret must not end in a log."""
    with pytest.raises(ConfigurationError) as caught:
        parse_options({"MAC_KEYS": ["hunter2", 5]})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("timeout", "expected"), [(None, None), (300, 300.0), (0, 0.0), (-1, -1.0), (0.5, 0.5), ("60", 60.0)]
)
def test_a_timeout_is_seconds_or_none(timeout: Any, expected: float | None) -> None:
    """None never expires."""
    assert expected == parse_timeout(timeout)


@pytest.mark.parametrize("timeout", ["soon", True, [1]])
def test_a_wrong_timeout_is_refused(timeout: Any) -> None:
    """Django would take 300 seconds instead, silently."""
    with pytest.raises(ConfigurationError, match="TIMEOUT"):
        parse_timeout(timeout)
