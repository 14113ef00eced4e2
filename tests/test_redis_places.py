"""Redis behind Sentinels, and as a cluster: real servers, started here."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import pytest
import redis
from redis.cluster import RedisCluster

from live_cache.exceptions import ConfigurationError, StoreUnavailableError
from live_cache.ledger.clocks import Dependency
from live_cache.ledger.redis import RedisLedger
from live_cache.location import parse_location
from live_cache.redis_connection import RedisConnection
from live_cache.redis_url import parse_redis_url, without_password
from live_cache.stores.redis import RedisStore
from tests.redis_groups import Sentinels, start_cluster, start_sentinels, wait_for
from tests.server_programs import free_port, start_redis

N_KEYS = 200
T = TypeVar("T")


@pytest.fixture(scope="module")
def cluster_url() -> Iterator[str]:
    """Start a cluster of three primaries."""
    with _started(start_cluster()) as cluster:
        yield cluster.url


@pytest.fixture
def sentinels() -> Iterator[Sentinels]:
    """Start a primary and a replica, both with a password, and a Sentinel."""
    with _started(start_sentinels()) as group:
        yield group


@contextmanager
def _started(group: AbstractContextManager[T]) -> Iterator[T]:
    with ExitStack() as stack:
        try:
            started = stack.enter_context(group)
        except RuntimeError as error:
            if "no redis-server" not in str(error):
                raise
            pytest.skip(f"REDIS IS MISSING: {error}")
        yield started


def test_a_cluster_holds_a_store(cluster_url: str) -> None:
    """Commands of many keys, scans and scripts work over all its nodes, and each node has a part."""
    store = RedisStore(RedisConnection(cluster_url, timeout_s=5), prefix="store:", clear_batch=50)
    items = {f"key/{n}": b"%d" % n for n in range(N_KEYS)}
    store.put_many(items, timeout_s=60)
    assert items == store.get_many([*items, "none"])
    assert store.exists("key/7")
    assert sorted(items) == sorted(store.keys("key"))
    assert store.increment("key/7", 5) == 12
    assert store.compare_and_swap("key/7", b"12", b"new", timeout_s=60)
    assert store.touch("key/7", None)
    assert store.get_with_expiry("key/7").expires_in_s is None  # type: ignore[union-attr]  # it is there
    assert store.delete_many(["key/1", "key/2", "none"]) == 2
    with RedisCluster.from_url(cluster_url.split(",")[0].replace("redis+cluster", "redis")) as client:
        assert all(client.get_redis_connection(node).dbsize() > 0 for node in client.get_primaries())
        client.set("of somebody else", "stays")
        assert store.invalidate_prefix("key") == N_KEYS - 2
        store.put_many(items)
        store.clear()
        assert list(store.keys()) == []
        assert client.get("of somebody else") == b"stays"
    store.close()


def test_a_cluster_holds_a_store_asynchronously(cluster_url: str) -> None:
    """The same by the async twins."""
    connection = RedisConnection(cluster_url, timeout_s=5)
    store = RedisStore(connection, prefix="astore:", clear_batch=50)
    items = {f"key/{n}": b"%d" % n for n in range(N_KEYS)}

    async def use() -> None:
        await store.aput_many(items, timeout_s=60)
        assert items == await store.aget_many([*items, "none"])
        assert sorted(items) == sorted(await store.akeys("key"))
        assert await store.aincrement("key/7", 5) == 12
        assert await store.adelete_many(["key/1", "key/2", "none"]) == 2
        await store.aclear()
        assert await store.akeys() == []
        await store.aclose()

    asyncio.run(use())


def test_a_cluster_holds_a_ledger(cluster_url: str) -> None:
    """Clocks lie on several nodes; an entry and its clocks are read together."""
    connection = RedisConnection(cluster_url, timeout_s=5)
    store = RedisStore(connection, prefix="entry:")
    ledger = RedisLedger(connection, prefix="ledger:", lease_s=0.01)
    clocks = [f"table{n}" for n in range(20)]
    dependencies = [Dependency(clock, (3,)) for clock in clocks]
    before = ledger.read(dependencies)
    ledger.tick(dict.fromkeys(clocks, (3,)))
    store.put("key", b"entry")
    readings, entry = ledger.read_with_entry(dependencies, store, "key")
    assert entry == b"entry"
    assert [reading.seq for reading in readings] == [reading.seq + 1 for reading in before]
    assert sorted(clocks) == sorted(info.clock for info in ledger.clocks())
    assert ledger.is_watched(["never read", *clocks])
    ledger.tick(dict.fromkeys(clocks, (1,)), records={clock: clock.encode() for clock in clocks})
    for reading in readings:
        assert ledger.log(reading.clock, reading.epoch, reading.seq, reading.seq + 1) == [reading.clock.encode()]
    store.clear()
    ledger.reset()
    connection.close()


def test_sentinels_name_the_primary(sentinels: Sentinels) -> None:
    """After a failover the new primary answers, with what it has, and its clocks have other epochs."""
    connection = RedisConnection(sentinels.url, timeout_s=5, retry_pause_s=0)
    store = RedisStore(connection, prefix="store:")
    ledger = RedisLedger(connection, prefix="ledger:", lease_s=0.01)
    store.put("key", b"value")
    assert asyncio.run(store.aget("key")) == b"value"
    (before,) = ledger.read([Dependency("table", (1,))])
    with sentinels.client(sentinels.primary_port) as primary:
        assert primary.get("store:key") == b"value"
        primary.wait(1, 2000)
    sentinels.lose_primary()

    def has_moved() -> bool:
        try:
            return store.get("key") == b"value" and ledger.read([Dependency("table", (1,))])[0].epoch != before.epoch
        except Exception:
            return False

    wait_for(has_moved)
    store.put("other", b"new")
    assert store.get("other") == b"new"
    connection.close()


def test_nobody_there_is_unavailable() -> None:
    """Neither Sentinels nor nodes answer: the error of every store, which shows no password."""
    for place in ("redis+sentinel://u:secret@127.0.0.1:{}/shop", "redis+cluster://u:secret@127.0.0.1:{}"):
        url = place.format(free_port())
        store = RedisStore(RedisConnection(url, connect_timeout_s=0.1, timeout_s=0.1, retry_pause_s=0))
        with pytest.raises(StoreUnavailableError) as caught:
            store.get("key")
        assert "secret" not in str(caught.value)
        with pytest.raises(StoreUnavailableError):
            asyncio.run(store.aget("key"))
        assert store.metrics().errors == 2


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis+sentinel://a:1,b/shop/3", ("sentinel", (("a", 1), ("b", 26379)), "shop", 3, None, None)),
        ("redis+sentinel://u:p%40@[::1]:7/shop", ("sentinel", (("::1", 7),), "shop", 0, "u", "p@")),
        ("redis+cluster://:p@a:1,b", ("cluster", (("a", 1), ("b", 6379)), "", 0, None, "p")),
        ("redis://u:p@h/1", ("single", (), "", 0, None, None)),
    ],
)
def test_a_url_is_taken_apart(url: str, expected: tuple[object, ...]) -> None:
    """Hosts with their default ports, service, database, user and password."""
    found = parse_redis_url(url)
    assert expected == (found.kind, found.hosts, found.service, found.db, found.username, found.password)
    assert parse_location(url).tiers[0].kind == "redis"


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("redis+sentinel://u:secret@a:1", "service"),
        ("redis+sentinel://u:secret@a:1/shop/x", "number"),
        ("redis+sentinel://u:secret@a:1,/shop", "host"),
        ("redis+sentinel://u:secret@a:99999/shop", "secret|range"),
        ("redis+cluster://u:secret@a/1", "database 0"),
        ("redis+cluster://u:secret@a?x=1", "option x"),
    ],
)
def test_a_wrong_url_is_refused(url: str, named: str) -> None:
    """The message says what is missing, and shows no password."""
    with pytest.raises(ConfigurationError, match=named) as caught:
        parse_location(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://u:secret@h/1",
        "redis://:se/cr@et@h:1",
        "unix:///s?db=1&password=secret",
        "redis+sentinel://:secret@a,b/s",
    ],
)
def test_no_password_is_shown(url: str) -> None:
    """Wherever it stands."""
    assert "cr" not in without_password(url)


def test_a_unix_socket(tmp_path: Path) -> None:
    """With a password and a database among the options."""
    socket = tmp_path / "redis.sock"
    try:
        server = start_redis(arguments=("--unixsocket", str(socket), "--requirepass", "p@ss"))
    except RuntimeError as error:
        pytest.skip(f"REDIS IS MISSING: {error}")
    try:
        (tier,) = parse_location(f"unix://:p%40ss@{socket}?db=2").tiers
        store = RedisStore(RedisConnection(tier.url, timeout_s=5))
        store.put("key", b"value")
        assert store.get("key") == b"value"
        assert asyncio.run(store.aget("key")) == b"value"
        with redis.Redis(port=server.port, password="p@ss", db=2) as client:
            assert client.dbsize() == 1
        store.close()
    finally:
        server.stop(kill=True)


def test_an_encrypted_connection(tmp_path: Path) -> None:
    """With an authority of one's own; a certificate of nobody known is refused."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    openssl = shutil.which("openssl") or pytest.skip("openssl is missing")
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "1", "-nodes"]
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", *subject, "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    port = free_port()
    tls = ["--tls-port", str(port), "--tls-cert-file", str(certificate), "--tls-key-file", str(key)]
    try:
        server = start_redis(arguments=(*tls, "--tls-auth-clients", "no", "--tls-ca-cert-file", str(certificate)))
    except RuntimeError as error:
        pytest.skip(f"REDIS WITH TLS IS MISSING: {error}")
    try:
        (tier,) = parse_location(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificate}").tiers
        store = RedisStore(RedisConnection(tier.url, connect_timeout_s=5, timeout_s=5))
        store.put("key", b"value")
        assert store.get("key") == b"value"
        assert asyncio.run(store.aget("key")) == b"value"
        store.close()
        unknown = RedisStore(RedisConnection(f"rediss://127.0.0.1:{port}/0", connect_timeout_s=5, timeout_s=5))
        with pytest.raises(StoreUnavailableError):
            unknown.get("key")
    finally:
        server.stop(kill=True)
