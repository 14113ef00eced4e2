"""
Redis servers that belong together, started here: a primary with a replica and a Sentinel, and a cluster.

Each group can lose a primary, as when its machine fails, and gets it back as a replica of the one that was promoted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Final

import redis

from tests.server_programs import Started, free_port, start_redis, start_sentinel

__all__ = ["N_PRIMARIES", "Cluster", "Sentinels", "start_cluster", "start_sentinels", "wait_for"]

PASSWORD: Final = "p@ss"
N_PRIMARIES: Final = 3
_SLOTS: Final = 16_384
_DOWN_AFTER_MS: Final = 500
_NODE_TIMEOUT_MS: Final = 1000
_REPLICATING: Final = ("--repl-diskless-sync-delay", "0")


def wait_for(is_there: Callable[[], bool], *, timeout_s: float = 20.0) -> None:
    """Wait until *is_there*; errors of Redis count as no. Raises TimeoutError."""
    end = time.monotonic() + timeout_s
    while True:
        try:
            if is_there():
                return
        except redis.RedisError:
            pass
        if time.monotonic() > end:
            raise TimeoutError("The servers did not find each other.")
        time.sleep(0.05)


def _cut_off(primary: redis.Redis, replica: redis.Redis) -> None:
    """End the replication: the link is lost, and the replica does not get in again."""
    replica.config_set("masterauth", "wrong")
    primary.client_kill_filter(_type="replica")


class Sentinels:
    """A primary, its replica, and one Sentinel that watches the service "shop". Database 2 is ours."""

    def __init__(self, servers: dict[int, Started], sentinel: redis.Redis, port: int) -> None:
        self.sentinel = sentinel
        self.url = f"redis+sentinel://:p%40ss@127.0.0.1:{port}/shop/2"
        self._servers = servers

    @property
    def primary_port(self) -> int:
        """Port of the server that the Sentinel names."""
        address = self.sentinel.sentinel_get_master_addr_by_name("shop")
        return int(address[1])  # type: ignore[index]  # a pair of host and port

    @property
    def primary(self) -> Started:
        """The server that the Sentinel names."""
        return self._servers[self.primary_port]

    def client(self, port: int) -> redis.Redis:
        """Return a client of one server."""
        return redis.Redis(port=port, password=PASSWORD, db=2)

    def lose_primary(self, *, lost_s: float = 0.0) -> None:
        """
        Kill the primary; return when the other one is it, and has a replica.

        Args:
            lost_s: Seconds before its end of which nothing was replicated any more.
        """
        lost = self.primary_port
        (new,) = (port for port in self._servers if port != lost)
        with self.client(lost) as primary, self.client(new) as replica:
            if lost_s:
                _cut_off(primary, replica)
                time.sleep(lost_s)
            self._servers[lost].crash()
            replica.config_set("masterauth", PASSWORD)
        wait_for(lambda: self.primary_port == new)
        wait_for(lambda: self._info(new)["role"] == "master")
        self._servers[lost].start_again()
        with self.client(lost) as client:
            wait_for(lambda: bool(client.replicaof("127.0.0.1", new)))  # the Sentinel would, some time later
        wait_for(lambda: self._is_replica(lost, of=new))

    def _is_replica(self, port: int, *, of: int) -> bool:
        info = self._info(port)
        return info["role"] == "slave" and info["master_port"] == of and info["master_link_status"] == "up"

    def _info(self, port: int) -> dict[str, object]:
        with self.client(port) as client:
            return dict(client.info("replication"))


@contextmanager
def start_sentinels() -> Iterator[Sentinels]:
    """
    Start the group, with a password.

    Raises:
        RuntimeError: There is no redis-server on this machine.
    """
    with ExitStack() as stack:
        secret = ("--requirepass", PASSWORD, "--masterauth", PASSWORD, *_REPLICATING)
        primary = start_redis(arguments=secret)
        stack.callback(primary.stop, kill=True)
        replica = start_redis(arguments=(*secret, "--replicaof", "127.0.0.1", str(primary.port)))
        stack.callback(replica.stop, kill=True)
        program = start_sentinel(
            f"sentinel monitor shop 127.0.0.1 {primary.port} 1\nsentinel auth-pass shop {PASSWORD}\n"
            f"sentinel down-after-milliseconds shop {_DOWN_AFTER_MS}\nsentinel failover-timeout shop 2000\n"
        )
        stack.callback(program.stop, kill=True)
        sentinel = redis.Redis(port=program.port)
        stack.callback(sentinel.close)
        group = Sentinels({primary.port: primary, replica.port: replica}, sentinel, program.port)
        wait_for(lambda: len(sentinel.sentinel_slaves("shop")) == 1)
        wait_for(lambda: group._is_replica(replica.port, of=primary.port))
        yield group


class Cluster:
    """A cluster of primaries, each with its replicas."""

    def __init__(self, nodes: list[Started]) -> None:
        self._nodes = nodes
        ports = [node.port for node in nodes]
        self.url = "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in ports[:2])

    def lose_primary(self, number: int, *, lost_s: float = 0.0) -> None:
        """
        Kill the *number*-th of the primaries; return when its replica is one, and it is back as its replica.

        Args:
            lost_s: Seconds before its end of which nothing was replicated any more.
        """
        ports = self._primaries()
        server = self.primary(number)
        lost = server.port
        view = self._view()
        (new,) = (port for port, node in view.items() if node["master_id"] == view[lost]["node_id"])
        with redis.Redis(port=lost) as primary, redis.Redis(port=new) as replica:
            if lost_s:
                _cut_off(primary, replica)
                time.sleep(lost_s)
            server.crash()
            replica.config_set("masterauth", "")
        wait_for(lambda: lost not in self._primaries() and self._is_whole(n_primaries=len(ports)))
        server.start_again()
        wait_for(lambda: _is(self._view()[lost], "slave") and self._is_whole(n_primaries=len(ports)))

    def primary(self, number: int) -> Started:
        """Return the *number*-th of the primaries."""
        ports = self._primaries()
        return next(node for node in self._nodes if node.port == ports[number % len(ports)])

    def move_slots(self, number: int, count: int) -> None:
        """Move *count* slots of the *number*-th primary, with all that they hold, to the next one."""
        view, ports = self._view(), self._primaries()
        source, target = (ports[n % len(ports)] for n in (number, number + 1))
        # Each range is one number, or the first and the last.
        moving = [slot for part in view[source]["slots"] for slot in range(int(part[0]), int(part[-1]) + 1)][:count]
        source_id, target_id = (view[port]["node_id"] for port in (source, target))
        with redis.Redis(port=source) as giver, redis.Redis(port=target) as taker:
            for slot in moving:
                taker.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
                giver.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
                while keys := giver.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
                    giver.execute_command("MIGRATE", "127.0.0.1", target, "", 0, 5000, "KEYS", *keys)
                for client in (taker, giver):
                    client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", target_id)

    def _primaries(self) -> list[int]:
        """Return the ports of the primaries, in an order that stays."""
        return sorted(port for port, node in self._view().items() if _is(node, "master"))

    def _view(self) -> dict[int, dict[str, Any]]:
        """Return what the first living node knows of all nodes, by port."""
        node = next(node for node in self._nodes if node.process.poll() is None)
        with redis.Redis(port=node.port) as client:
            found: dict[str, dict[str, Any]] = client.cluster("NODES")
        return {int(address.rpartition(":")[2]): facts for address, facts in found.items()}

    def _is_whole(self, *, n_primaries: int) -> bool:
        """Return whether every living node knows that many primaries, and all slots are served."""
        living = [node.port for node in self._nodes if node.process.poll() is None]
        for port in living:
            with redis.Redis(port=port) as client:
                info = client.cluster("INFO")
            if info["cluster_state"] != "ok" or info["cluster_known_nodes"] != str(len(self._nodes)):
                return False
        return len(self._primaries()) == n_primaries


def _is(node: dict[str, Any], role: str) -> bool:
    flags = node["flags"].split(",")
    return role in flags and "fail" not in flags


@contextmanager
def start_cluster(*, n_replicas: int = 0) -> Iterator[Cluster]:
    """
    Start a cluster of three primaries, each with that many replicas.

    Raises:
        RuntimeError: There is no redis-server on this machine.
    """
    with ExitStack() as stack:
        nodes = []
        for _ in range(N_PRIMARIES * (1 + n_replicas)):
            node = _start_node()
            stack.callback(node.stop, kill=True)
            nodes.append(node)
        for number, node in enumerate(nodes):
            with redis.Redis(port=node.port) as client:
                if number < N_PRIMARIES:
                    low, high = (n * _SLOTS // N_PRIMARIES for n in (number, number + 1))
                    client.execute_command("CLUSTER", "ADDSLOTSRANGE", low, high - 1)
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
                if number:
                    client.execute_command("CLUSTER", "MEET", "127.0.0.1", nodes[0].port)
        group = Cluster(nodes)
        wait_for(lambda: group._is_whole(n_primaries=len(nodes)))
        ids = [group._view()[node.port]["node_id"] for node in nodes]
        for number, node in enumerate(nodes[N_PRIMARIES:]):
            with redis.Redis(port=node.port) as client:
                client.execute_command("CLUSTER", "REPLICATE", ids[number % N_PRIMARIES])
                wait_for(partial(_is_synced, client))
        wait_for(lambda: group._is_whole(n_primaries=N_PRIMARIES))
        yield group


def _is_synced(client: redis.Redis) -> bool:
    return bool(client.info("replication").get("master_link_status") == "up")


def _start_node() -> Started:
    while True:
        port = free_port()
        if port >= 55_000:  # the bus of a node takes the port 10,000 above
            continue
        arguments = ("--cluster-enabled", "yes", "--cluster-node-timeout", str(_NODE_TIMEOUT_MS), *_REPLICATING)
        try:
            return start_redis(port=port, arguments=arguments)
        except RuntimeError as error:  # somebody else was faster
            if "no redis-server" in str(error):
                raise
