"""A fail-over group started from the files that the operator writes: who becomes primary, and what a loss costs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis as client
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError
from redis.retry import Retry
from redis.sentinel import Sentinel

from kvpool_operator.api import Settings, parse_spec
from kvpool_operator.api import stores as api
from kvpool_operator.desired import Material, Pool
from kvpool_operator.desired.stores import redis, sentinel
from kvpool_operator.observe.probe import Target, sentinel_primary
from kvpool_operator.status.observed import StoreProbe, StoreState
from testkit.sentinel import followed_s, replaced_s

from .pods import PodProcess, anywhere, fresh_ports, localized, program_wrappers, wait_until

pytestmark = pytest.mark.timeout(600)
PASSWORD, GROUP_PASSWORD = "engines-word", "group-word"
DOWN_AFTER_S, FAILOVER_TIMEOUT_S = 1, api.Sentinel().failover_timeout_seconds
REPLACED_S = replaced_s(DOWN_AFTER_S, FAILOVER_TIMEOUT_S)
WHOLE_S = REPLACED_S + followed_s(FAILOVER_TIMEOUT_S)
NO_RETRY = Retry(NoBackoff(), 0)
LOGIN = {"username": redis.USERNAME, "password": PASSWORD, "retry": NO_RETRY, "socket_timeout": 2}


class Group:
    """Three servers and three sentinels, each with a loopback address."""

    def __init__(self, kind: str, work: Path) -> None:
        spec = parse_spec(
            {"backend": {"type": kind, "mode": "Sentinel", "sentinel": {"downAfterSeconds": DOWN_AFTER_S}}}
        )
        material = Material(PASSWORD, "1", group_password=GROUP_PASSWORD)
        pool = Pool("demo", "team", "uid", spec, material, Settings())
        backend = spec.managed_redis
        assert backend is not None
        ports = fresh_ports(redis.PORT, sentinel.PORT)
        self.port, self.sentinel_port = ports[redis.PORT], ports[sentinel.PORT]
        self.hosts = [f"127.0.10.{number}" for number in (1, 2, 3)]
        self.sentinel_hosts = [f"127.0.11.{number}" for number in (1, 2, 3)]
        hosts = dict(zip(sentinel.server_hosts(pool), self.hosts, strict=True))
        hosts |= dict(zip(sentinel.sentinel_hosts(pool), self.sentinel_hosts, strict=True))
        programs = work / "bin"
        programs.mkdir()
        program_wrappers(programs)
        self.path = f"{programs}:{os.environ['PATH']}"
        self.auth = work / "auth"
        self.auth.mkdir()
        self.let_in(PASSWORD)
        self.first = ""
        """The primary when the group was new; the tests replace it, in any order."""
        self.configs: dict[str, Path] = {}
        self.pods: dict[str, PodProcess] = {}
        for host in (*self.hosts, *self.sentinel_hosts):
            folder = work / host
            config = folder / "config"
            config.mkdir(parents=True)
            own = {
                **hosts,
                f"$POD_NAME.demo-members.{pool.namespace}.svc.cluster.local": "$POD_NAME",
                f"$POD_NAME.demo-sentinel.{pool.namespace}.svc.cluster.local": "$POD_NAME",
                redis.CONFIG_DIRECTORY: str(config),
                redis.AUTH_DIRECTORY: str(self.auth),
                "/tmp": str(folder / "tmp"),  # noqa: S108  (the container's)
                "bind * -::*": f"bind {host}",
            }
            for name, text in sentinel.files(pool, backend).items():
                (config / name).write_text(localized(text, own, ports))
            script = "start-server.sh" if host in self.hosts else "start-sentinel.sh"
            self.configs[host] = config
            self.pods[host] = PodProcess(host, ["sh", str(config / script)], folder / "tmp", self.environment(host))

    def let_in(self, password: str, former: str = "") -> None:
        """Write the users of servers and sentinels, as the kubelet does when the Secrets have changed."""
        digest = redis.password_digest(former) if former else ""
        for name, users in (
            (redis.ACL_KEY, redis.acl(password, GROUP_PASSWORD, digest)),
            (sentinel.ACL_KEY, sentinel.acl(password, GROUP_PASSWORD, digest)),
        ):
            fresh = self.auth / f"{name}.new"
            fresh.write_text(users)
            fresh.rename(self.auth / name)

    def all_let_in(self, password: str) -> bool:
        """Whether servers and sentinels all take a password of an engine."""
        login = {**LOGIN, "password": password}
        places = [
            *((host, self.port) for host in self.hosts),
            *((host, self.sentinel_port) for host in self.sentinel_hosts),
        ]
        for host, port in places:
            with client.Redis(host=host, port=port, **login) as asked:  # type: ignore[arg-type]
                try:
                    asked.ping()
                except RedisError:
                    return False
        return True

    def environment(self, host: str) -> dict[str, str]:
        return {"PATH": self.path, "POD_NAME": host, "KVPOOL_GROUP_PASSWORD": GROUP_PASSWORD}

    def log(self) -> str:
        return "\n".join(f"== {host}\n{pod.log[-1500:]}" for host, pod in self.pods.items())

    def roles(self) -> dict[str, str]:
        """What each server that answers says of itself; replicas only once they follow."""
        found = {}
        for host in self.hosts:
            try:
                with client.Redis(host=host, port=self.port, **LOGIN) as server:  # type: ignore[arg-type]
                    role = server.role()
            except (RedisError, OSError):
                continue
            word = role[0].decode() if isinstance(role[0], bytes) else role[0]
            follows = word == "master" or role[3] in (b"connected", "connected")
            found[host] = word if follows else f"{word} ({role[3]!r})"
        return found

    def named(self) -> set[str]:
        """The primary by all sentinels; more than one while they differ."""
        return set(self.answers())

    def answers(self) -> list[str]:
        """The primary by each sentinel."""
        names = []
        for host in self.sentinel_hosts:
            try:
                with client.Redis(host=host, port=self.sentinel_port, **LOGIN) as asked:  # type: ignore[arg-type]
                    answer = asked.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", sentinel.MASTER_NAME)
                names.append(str(answer[0].decode() if isinstance(answer[0], bytes) else answer[0]))
            except (RedisError, OSError):
                names.append(f"{host} does not answer")
        return names

    def whole(self) -> bool:
        """One primary, two replicas that follow, and sentinels of one mind that know each other."""
        roles = self.roles()
        primaries = {host for host, role in roles.items() if role == "master"}
        if len(primaries) != 1 or sorted(roles.values()) != ["master", "slave", "slave"] or self.named() != primaries:
            return False
        return all(self._at_rest(host) for host in self.sentinel_hosts)

    def _at_rest(self, host: str) -> bool:
        """No fail-over goes on: one that begins before the last one ended can leave a sentinel with the older answer."""
        with client.Redis(host=host, port=self.sentinel_port, **LOGIN) as asked:  # type: ignore[arg-type]
            state = asked.sentinel_master(sentinel.MASTER_NAME)
        return (state["num-slaves"], state["num-other-sentinels"], state["flags"]) == (2, 2, "master")

    def replicas_are_down(self) -> bool:
        """Every sentinel holds both replicas for lost."""
        for host in self.sentinel_hosts:
            with client.Redis(host=host, port=self.sentinel_port, **LOGIN) as asked:  # type: ignore[arg-type]
                states = asked.execute_command("SENTINEL", "REPLICAS", sentinel.MASTER_NAME)
            if ["s_down" in str(state) for state in states] != [True, True]:
                return False
        return True

    def settle(self, what: str) -> str:
        """Wait until the group is whole; returns the primary."""
        try:
            wait_until(what, self.whole, WHOLE_S, 0.2)
        except TimeoutError as error:
            raise AssertionError(f"{error}; {self.roles()} {self.named()}\n{self.log()}") from None
        return next(iter(self.named()))

    def primary(self) -> client.Redis:
        """As engines find it: through the sentinels, as the user that engines are."""
        endpoints = [(host, self.sentinel_port) for host in self.sentinel_hosts]
        login = {"username": redis.USERNAME, "password": PASSWORD}
        return Sentinel(endpoints, sentinel_kwargs=login, socket_timeout=2, **login).master_for(sentinel.MASTER_NAME)  # type: ignore[no-any-return,no-untyped-call]

    def known(self, host: str) -> bool:
        """Whether the startup probe of a server says yes."""
        script = self.configs[host] / "known.sh"
        environment = {**os.environ, **self.environment(host)}
        return subprocess.run(["sh", str(script)], env=environment, check=False, timeout=30).returncode == 0

    def keep_block(self) -> None:
        """Store a block, on all three servers."""
        with self.primary() as store:
            store.set("kept", b"block")
            assert store.execute_command("WAIT", 2, 5000) == 2

    def as_group(self, host: str) -> client.Redis:
        """A sentinel as the user that may direct it."""
        login = {"username": redis.GROUP_USERNAME, "password": GROUP_PASSWORD}
        return client.Redis(host=host, port=self.sentinel_port, socket_timeout=2, **login)  # type: ignore[arg-type]

    def kept_block(self) -> bool:
        """Whether it is still there."""
        with self.primary() as store:
            return bool(store.get("kept") == b"block")


@pytest.fixture(scope="module", params=["Redis", "Valkey"])
def group(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    made = Group(request.param, tmp_path_factory.mktemp("group"))
    try:
        for host in (*made.sentinel_hosts, *reversed(made.hosts)):  # the worst order
            made.pods[host].start()
        made.first = made.settle("a new group is whole")
        yield made
    finally:
        for pod in made.pods.values():
            pod.kill()


def test_the_first_server_of_a_new_group_is_the_primary(group: Group) -> None:
    assert group.first == group.hosts[0]


def test_engines_store_through_the_sentinels(group: Group) -> None:
    group.settle("whole")
    with group.primary() as store:
        assert store.set("k", b"v")
        assert store.get("k") == b"v"
        assert store.execute_command("ROLE")[0] in (b"master", "master")


def test_nobody_gets_in_without_a_password(group: Group) -> None:
    group.settle("whole")
    for host, port in ((group.hosts[0], group.port), (group.sentinel_hosts[0], group.sentinel_port)):
        with client.Redis(host=host, port=port, retry=NO_RETRY) as nobody, pytest.raises(AuthenticationError):
            nobody.ping()


@pytest.mark.parametrize("command", ["SENTINEL FAILOVER kvpool", "SENTINEL REMOVE kvpool", "ACL LIST", "SHUTDOWN"])
def test_engines_cannot_direct_the_sentinels(group: Group, command: str) -> None:
    group.settle("whole")
    with (
        client.Redis(host=group.sentinel_hosts[0], port=group.sentinel_port, **LOGIN) as asked,  # type: ignore[arg-type]
        pytest.raises(NoPermissionError),
    ):
        asked.execute_command(*command.split())


async def test_the_probe_of_an_external_group_tells_an_unknown_master(group: Group) -> None:
    group.settle("whole")
    target = Target(group.sentinel_hosts[0], group.sentinel_port, username=redis.USERNAME, password=PASSWORD)
    found = await sentinel_primary(anywhere(), target, "nobody")
    assert isinstance(found, StoreProbe)
    assert found.state is StoreState.UNKNOWN_MASTER
    assert await sentinel_primary(anywhere(), target, sentinel.MASTER_NAME) == (next(iter(group.named())), group.port)


def test_a_lost_primary_is_replaced_and_comes_back_as_a_replica(group: Group) -> None:
    lost = group.settle("whole")
    group.keep_block()
    group.pods[lost].kill()
    wait_until("another primary", lambda: len(group.named()) == 1 and lost not in group.named(), REPLACED_S, 0.2)
    assert group.kept_block()
    group.pods[lost].start()
    assert group.settle("whole again") != lost


def test_a_primary_that_restarts_at_once_does_not_empty_its_replicas(group: Group) -> None:
    lost = group.settle("whole")
    group.keep_block()
    group.pods[lost].kill()
    group.pods[lost].start()
    assert group.settle("whole again") != lost
    assert group.kept_block()


def test_a_primary_that_restarts_waits_for_a_second_attempt_to_replace_it(group: Group) -> None:
    """The first one fails, here because no replica answers; a vote without a majority costs the same."""
    lost = group.settle("whole")
    group.keep_block()
    replicas = [group.pods[host] for host in group.hosts if host != lost]

    def given_up() -> int:
        return sum(group.pods[host].log.count("-failover-abort-no-good-slave") for host in group.sentinel_hosts)

    before = given_up()
    for replica in replicas:
        replica.pause()
    try:
        wait_until("all sentinels notice", group.replicas_are_down, REPLACED_S, 0.2)
        group.pods[lost].kill()
        group.pods[lost].start()
        wait_until("an attempt is given up", lambda: given_up() > before, REPLACED_S, 0.2)
    finally:
        for replica in replicas:
            replica.resume()
    assert group.settle("whole again") != lost
    assert group.kept_block()


def test_a_primary_that_is_asked_to_leave_hands_over_first(group: Group) -> None:
    leaving = group.settle("whole")
    script = group.configs[leaving] / "leave.sh"
    environment = {**os.environ, **group.environment(leaving)}
    subprocess.run(["sh", str(script)], env=environment, check=True, timeout=REPLACED_S)
    assert group.answers().count(leaving) <= 1  # the third sentinel hears of it a moment later
    assert group.settle("whole again") != leaving


def test_a_server_has_begun_once_most_sentinels_know_it(group: Group) -> None:
    """Sentinels that have just begun know the primary alone. Lost then, it would leave replicas that nobody directs."""
    primary = group.settle("whole")
    replica = next(host for host in group.hosts if host != primary)
    assert group.known(primary)
    assert group.known(replica)
    group.pods[primary].pause()  # it can't name its replicas
    try:
        for host in group.sentinel_hosts[:2]:
            with group.as_group(host) as asked:
                asked.execute_command("SENTINEL", "RESET", sentinel.MASTER_NAME)
        assert not group.known(replica)
    finally:
        group.pods[primary].resume()
    wait_until("both know it again", lambda: group.known(replica), WHOLE_S, 0.5)
    group.settle("whole again")


def test_a_password_is_changed_twice_without_a_fail_over(group: Group) -> None:
    primary = group.settle("whole")
    group.keep_block()
    try:
        group.let_in("second", PASSWORD)
        wait_until("all take it", lambda: group.all_let_in("second"), WHOLE_S, 0.2)
        assert group.all_let_in(PASSWORD)
        group.let_in("third", "second")
        wait_until("all take the next", lambda: group.all_let_in("third"), WHOLE_S, 0.2)
        assert not group.all_let_in(PASSWORD)
    finally:
        group.let_in(PASSWORD)
        wait_until("all take the first again", lambda: group.all_let_in(PASSWORD), WHOLE_S, 0.2)
    assert group.settle("whole again") == primary
    assert group.kept_block()


def test_a_group_that_lost_everything_has_one_primary_again(group: Group) -> None:
    group.settle("whole")
    for pod in group.pods.values():
        pod.kill()
    for pod in group.pods.values():
        pod.start()
    group.settle("whole again")
