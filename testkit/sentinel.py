"""A fail-over group on loopback: one primary, two replicas, three sentinels that agree on a lost primary after a second."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis

from testkit.servers import KeyValueServer, Server, ServerKind, answers_ping, server_command, wait_until

MASTER_NAME = "kvpool"
DOWN_AFTER_S, FAILOVER_TIMEOUT_S = 1, 5
TILT_S = 30
"""A sentinel that stood still for two seconds, as on a machine that had no core for it, only looks on for so long: it neither
replaces a primary nor directs a replica. Source: redis/src/sentinel.c, SENTINEL_TILT_PERIOD."""
INFO_S = 10
"""How often a sentinel looks at a replica in quiet times. Source: redis/src/sentinel.c, sentinel_info_period."""
SYNC_S = 15
"""For a new connection to the primary (one try in a second), its delay before it sends its data (5 s), and little data."""


def replaced_s(down_after_s: float = DOWN_AFTER_S, failover_timeout_s: float = FAILOVER_TIMEOUT_S) -> float:
    """Seconds until a lost primary is replaced: sentinels that look on, notice, and need a second attempt."""
    return TILT_S + down_after_s + 2 * failover_timeout_s + SYNC_S


def followed_s(failover_timeout_s: float = FAILOVER_TIMEOUT_S) -> float:
    """Seconds until a replica follows the primary that the sentinels name, whatever it followed before.

    If they stood still after they had named it and before they told the replica, it is told when they have looked on: not before
    they see it follow another one for the time-out. Source: redis/src/sentinel.c, "+fix-slave-config".
    """
    return TILT_S + INFO_S + failover_timeout_s + INFO_S + SYNC_S


class _SentinelServer(Server):
    def __init__(self, primary: KeyValueServer, own_password: str | None, kind: ServerKind) -> None:
        super().__init__(f"{kind} sentinel")
        self._kind: ServerKind = kind
        self._file = self.folder / "sentinel.conf"
        self._lines = [
            f"bind {self.host}", f"port {self.port}", f"dir {self.folder}",
            f"sentinel monitor {MASTER_NAME} {primary.host} {primary.port} 2",
            f"sentinel down-after-milliseconds {MASTER_NAME} {DOWN_AFTER_S * 1000}",
            f"sentinel failover-timeout {MASTER_NAME} {FAILOVER_TIMEOUT_S * 1000}",
        ]  # fmt: skip
        if primary.password is not None:
            self._lines.append(f"sentinel auth-pass {MASTER_NAME} {primary.password}")
        if own_password is not None:
            self._lines.append(f"requirepass {own_password}")

    def command(self) -> tuple[list[str], dict[str, str]]:
        self._file.write_text("\n".join(self._lines) + "\n")  # a sentinel rewrites it with what it learnt
        command, environment = server_command(self._kind)
        return [*command, str(self._file), "--sentinel"], environment

    def answers(self) -> bool:
        return answers_ping(self.host, self.port)


class SentinelGroup:
    """Six servers. What is stopped and started is all of them, but for `kill_primary`."""

    def __init__(
        self, *, kind: ServerKind = "redis", password: str | None = None, sentinel_password: str | None = None
    ) -> None:
        self._password, self._sentinel_password = password, sentinel_password
        auth = [] if password is None else [f"masterauth {password}"]
        common = [*auth, "repl-diskless-sync-delay 0", "repl-diskless-load on-empty-db"]
        first = KeyValueServer(kind, password=password, extra=common)
        following = [*common, f"replicaof {first.host} {first.port}"]
        self.servers = [first, *(KeyValueServer(kind, password=password, extra=following) for _ in range(2))]
        self.sentinels = [_SentinelServer(first, sentinel_password, kind) for _ in range(3)]

    def remote(self, **fields: object) -> dict[str, object]:
        """The connector's configuration for it, without passwords."""
        endpoints = [{"host": sentinel.host, "port": sentinel.port} for sentinel in self.sentinels]
        return {"type": "redis", "sentinel": {"master_name": MASTER_NAME, "endpoints": endpoints}} | fields

    def start(self) -> Self:
        """Start all; returns when the replicas follow and every sentinel knows the group."""
        try:
            for group in (self.servers, self.sentinels):
                for each in group:
                    each.start(wait=False)
                for each in group:
                    each.wait()
                wait_until("two replicas follow", lambda: self._replicas() == 2)
            wait_until("the sentinels know each other and the replicas", self._complete)
        except BaseException:
            self.kill()
            raise
        return self

    @property
    def primary(self) -> KeyValueServer:
        """Which server the first sentinel names."""
        with self._ask() as client:
            address: Any = client.sentinel_get_master_addr_by_name(MASTER_NAME)
        return next(server for server in self.servers if server.port == int(address[1]))

    def kill_primary(self) -> KeyValueServer:
        """SIGKILL; returns which it was."""
        lost = self.primary
        lost.kill()
        return lost

    def kill(self) -> None:
        """All of them."""
        for each in self._all:
            each.kill()

    def pause(self) -> None:
        """All of them: the sentinels first, so that they see no loss."""
        for each in (*self.sentinels, *self.servers):
            each.pause()

    def resume(self) -> None:
        """All of them: the servers first."""
        for each in self._all:
            each.resume()

    def close(self) -> None:
        """End all and remove their files."""
        for each in reversed(self._all):
            each.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _all(self) -> list[Server]:
        return [*self.servers, *self.sentinels]

    def _ask(self, number: int = 0) -> contextlib.closing[redis.Redis]:
        port, password = self.sentinels[number].port, self._sentinel_password
        return contextlib.closing(redis.Redis(port=port, password=password, decode_responses=True))

    def _replicas(self) -> int:
        with contextlib.closing(redis.Redis(port=self.servers[0].port, password=self._password)) as client:
            state: Any = client.info("replication")
        return sum(state.get(f"slave{number}", {}).get("state") == "online" for number in range(2))

    def _complete(self) -> bool:
        for number in range(len(self.sentinels)):
            with self._ask(number) as client:
                state: Any = client.sentinel_master(MASTER_NAME)
            if (state["num-slaves"], state["num-other-sentinels"]) != (2, 2):
                return False
        return True


def secret(folder: Path, name: str, value: str) -> str:
    """A file that holds a password, as a mounted Secret does."""
    (folder / name).write_text(f"{value}\n")
    return str(folder / name)
