"""The files that the operator writes, in a real server: it starts with them and does what they promise."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis as client
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError
from redis.retry import Retry

from kvpool_operator.api import Settings, parse_spec
from kvpool_operator.desired import Material, Pool
from kvpool_operator.desired.stores import redis
from kvpool_operator.observe.probe import Target, probe
from kvpool_operator.status.observed import StoreState
from testkit.patience import PATIENCE_S

from .pods import PodProcess, anywhere, fresh_ports, localized, program_wrappers, wait_until

PASSWORD = "the-password"
FORMER = "the-one-before"
NO_RETRY = Retry(NoBackoff(), 0)


@dataclass(frozen=True)
class Store:
    """A lone server, started as its Pod's container is."""

    pod: PodProcess
    port: int
    users: Path
    """The mounted file of the Secret."""
    ping: list[str]
    """What the probes run."""

    def rotate(self, password: str, former: str) -> None:
        """As the kubelet does when the Secret has changed: the file is another one at once."""
        fresh = self.users.with_suffix(".new")
        fresh.write_text(redis.acl(password, former=redis.password_digest(former)))
        fresh.rename(self.users)
        # Both: one of them may have been valid before.
        wait_until("it is in use", lambda: self.lets_in(password) and self.lets_in(former), PATIENCE_S, 0.1)

    def lets_in(self, password: str) -> bool:
        """Whether an engine with this password gets in.

        Redis closes the connections of a user who changes, also one that says its password just then:
        such an engine connects again.
        """
        for _ in range(2):
            with client.Redis(port=self.port, username=redis.USERNAME, password=password, retry=NO_RETRY) as engine:
                try:
                    return bool(engine.ping())
                except client.AuthenticationError:
                    return False
                except client.ConnectionError as error:
                    closed = error
        raise closed

    def answers_ping(self) -> bool:
        """Whether the Pod's probe says yes."""
        return subprocess.run(self.ping, env=self.pod.environment, check=False).returncode == 0


@pytest.fixture(scope="module", params=["Valkey", "Redis"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A server with the ConfigMap and the Secret of a pool; only paths, the address and the port are this machine's."""
    work = tmp_path_factory.mktemp("store")
    spec = parse_spec({"backend": {"type": request.param, "memory": "64Mi"}})
    pool = Pool("demo", "team", "uid", spec, Material(PASSWORD, "1"), Settings())
    config, deployment = redis.build_configmap(pool), redis.build_deployment(pool)
    assert config is not None
    assert deployment is not None
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    ports = fresh_ports(redis.PORT)
    own = {
        redis.CONFIG_DIRECTORY: str(work),
        redis.AUTH_DIRECTORY: str(work),
        "/tmp": str(work / "tmp"),  # noqa: S108  (the container's)
        "bind * -::*": "bind 127.0.0.1",
    }
    for name, text in config["data"].items():
        (work / name).write_text(localized(text, own, ports))
    users = work / redis.ACL_KEY
    users.write_text(redis.acl(PASSWORD, former=redis.password_digest(FORMER)))
    programs = work / "bin"
    programs.mkdir()
    program_wrappers(programs)
    command, ping = (
        [localized(word, own, ports) for word in words]
        for words in (container["command"], container["readinessProbe"]["exec"]["command"])
    )
    pod = PodProcess("store", command, work / "tmp", {"PATH": f"{programs}:{os.environ['PATH']}"})
    pod.start()
    started = Store(pod, ports[redis.PORT], users, ping)
    try:
        wait_until("it answers", started.answers_ping, PATIENCE_S, 0.1)
        yield started
    finally:
        pod.kill()


@pytest.fixture
def port(store: Store) -> int:
    return store.port


@pytest.fixture
def engine(port: int) -> Iterator[client.Redis]:
    """A client as engines are."""
    with client.Redis(port=port, username=redis.USERNAME, password=PASSWORD) as connection:
        yield connection


def test_engines_can_store_and_find_blocks(engine: client.Redis) -> None:
    assert engine.set("k", b"v", ex=60)
    assert engine.get("k") == b"v"
    assert engine.exists("k", "other") == 1
    assert engine.delete("k") == 1


def test_nobody_gets_in_without_the_password(port: int) -> None:
    with client.Redis(port=port, retry=NO_RETRY) as nobody, pytest.raises(client.AuthenticationError):
        nobody.get("k")
    with (
        client.Redis(port=port, password=PASSWORD, retry=NO_RETRY) as default,
        pytest.raises(client.AuthenticationError),
    ):
        default.get("k")


@pytest.mark.parametrize(
    "command", ["FLUSHALL", "CONFIG GET *", "SHUTDOWN NOSAVE", "ACL LIST", "KEYS *", "MODULE LIST"]
)
def test_engines_cannot_administer_the_server(engine: client.Redis, command: str) -> None:
    with pytest.raises(NoPermissionError):
        engine.execute_command(command)  # type: ignore[no-untyped-call]


def test_the_server_says_how_full_it_is(engine: client.Redis) -> None:
    memory = engine.info("memory")
    assert isinstance(memory, dict)
    assert memory["maxmemory"] == int((64 << 20) * 0.85)
    assert memory["maxmemory_policy"] == "allkeys-lru"


def test_a_full_store_forgets_and_goes_on(engine: client.Redis) -> None:
    for number in range(100):
        assert engine.set(f"block-{number}", b"x" * (1 << 20))
    stats = engine.info("stats")
    assert isinstance(stats, dict)
    assert stats["evicted_keys"] > 0
    assert engine.get("block-99") is not None


def test_a_password_is_changed_twice_while_the_server_runs(store: Store, engine: client.Redis) -> None:
    """Blocks stay, the former password is valid until the next change, and probes say yes all along."""
    assert engine.set("kept", b"v")
    process = store.pod.pid
    try:
        store.rotate("second", PASSWORD)
        assert store.lets_in(PASSWORD)
        assert not store.lets_in(FORMER)
        store.rotate("third", "second")
        assert not store.lets_in(PASSWORD)
        assert store.answers_ping()
        with client.Redis(port=store.port, username=redis.USERNAME, password="third") as late:
            assert late.get("kept") == b"v"
        assert store.pod.runs
        assert store.pod.pid == process
    finally:
        store.rotate(PASSWORD, FORMER)


def test_an_engine_goes_on_with_the_former_password(store: Store) -> None:
    """Redis closes the connections of a user who has changed, and Valkey keeps them: the next one gets in at once."""
    with client.Redis(port=store.port, username=redis.USERNAME, password=PASSWORD) as engine:
        assert engine.set("kept", b"v")
        try:
            store.rotate("second", PASSWORD)
            assert engine.get("kept") == b"v"
        finally:
            store.rotate(PASSWORD, FORMER)


def test_users_that_the_server_does_not_take_change_nothing(store: Store) -> None:
    good = store.users.read_text()
    store.users.write_text("user kvpool nonsense\n")
    wait_until("it is said", lambda: "does not take them yet" in store.pod.log, PATIENCE_S, 0.1)
    assert store.lets_in(PASSWORD)
    assert store.answers_ping()
    store.users.write_text(good)


def test_the_containers_own_user_may_do_nothing_else(store: Store) -> None:
    password = (store.users.parent / "tmp" / "own-password").read_text().strip()
    with client.Redis(port=store.port, username=redis.OWN_USERNAME, password=password) as own:
        assert own.ping()
        for command in ("GET k", "ACL LIST", "ACL SETUSER own on", "INFO", "CONFIG GET *"):
            with pytest.raises(NoPermissionError):
                own.execute_command(command)


def test_the_probe_says_no_when_nobody_answers(store: Store) -> None:
    store.pod.pause()
    try:
        assert not store.answers_ping()
    finally:
        store.pod.resume()


@pytest.mark.parametrize("password", [PASSWORD, FORMER])
async def test_the_probe_gets_in_with_the_right_password(port: int, password: str) -> None:
    """That is the present one and the one before."""
    found = await probe(anywhere(), Target("127.0.0.1", port, username=redis.USERNAME, password=password))
    assert found.state is StoreState.AVAILABLE


@pytest.mark.parametrize(
    ("username", "password"), [(redis.USERNAME, "canary-wrong"), ("", PASSWORD), ("", None), ("x\r\nPING", "y\r\n")]
)
async def test_the_probe_tells_a_refusal(port: int, username: str, password: str | None) -> None:
    found = await probe(anywhere(), Target("127.0.0.1", port, username=username, password=password))
    assert found.state is StoreState.AUTH_FAILED
    assert "canary" not in found.detail


async def test_the_probe_tells_a_database_that_is_not_there(port: int) -> None:
    found = await probe(anywhere(), Target("127.0.0.1", port, database=16, username=redis.USERNAME, password=PASSWORD))
    assert found.state is StoreState.NO_DATABASE
