"""Stores that the operator runs, as Pods of a real node: each from its example as it is, written and read by the connector's
client in the Pods of engines, then hit by faults. Engines are stand-ins, see `e2e.stores.stage`.

The lone Valkey and the group with sentinels are in every run; the others have `make test-cluster-stores`.
"""

from __future__ import annotations

import json
import os
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from e2e.demo.install import NAMESPACE
from e2e.demo.steps import stopwatch
from e2e.stores.stage import Pool, Stage
from kvpool_operator.api.stores import Sentinel
from testkit.sentinel import followed_s, replaced_s
from testkit.servers import wait_until

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0, reason="a node needs root"),
]

HIT, MISS = "HIT", "MISS"
DEFAULTS = Sentinel()
REPLACED_S = 2 * replaced_s(DEFAULTS.down_after_seconds, DEFAULTS.failover_timeout_seconds)
"""Twice: on a node that engines share with the sentinels, these may stand still again as soon as they have looked on."""
FOLLOWED_S = followed_s(DEFAULTS.failover_timeout_seconds)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    stage = Stage(stopwatch())
    try:
        yield stage
    finally:
        stage.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="kvpool-volumes-") as folder:
        yield Path(folder)


def blocks_are_shared(pool: Pool, *names: str) -> None:
    """What one engine writes another one reads; what nobody wrote is a miss."""
    wait_until("an engine writes", lambda: set(pool.client("put", *names)) == {HIT}, 60, poll_s=0.5)
    assert pool.client("get", *names, "never-written", engine=1) == [HIT] * len(names) + [MISS]


# ---- Redis's family


def test_a_lone_server(stage: Stage) -> None:
    pool = stage.pool("valkey")
    pool.ready()
    blocks_are_shared(pool, "a", "b")
    pool.delete()


@pytest.mark.slow
def test_a_changed_password_comes_to_a_running_server(stage: Stage) -> None:
    """The kubelet brings the Secret to both sides within two minutes, and no Pod is another one after it."""
    pool = stage.pool("valkey")
    pool.ready()
    blocks_are_shared(pool, "a", "b")
    before = set(pool.pods("store"))
    patch = json.dumps({"stringData": {"password": "the-next-one"}})
    pool.kubectl("patch", "secret", f"{pool.name}-store-auth", "--type=merge", "-p", patch)
    (pod,) = before
    changed = "the users of the Secret have changed and are in use"
    wait_until("the server takes it", lambda: changed in pool.kubectl("logs", pod), 180, poll_s=1)
    wait_until("engines have it", lambda: pool.client("get", "a", engine=1) == [HIT], 180, poll_s=1)
    blocks_are_shared(pool, "b", "c")
    assert set(pool.pods("store")) == before
    assert pool.exec(pod, "sh", "-c", "REDISCLI_AUTH=the-next-one valkey-cli --user kvpool ping").strip() == "PONG"
    pool.delete()


def ask_sentinel(pool: Pool, number: int, *words: str) -> list[str]:
    """As an engine would; its answer, line by line."""
    call = ("valkey-cli", "-p", "26379", "--user", "kvpool", "sentinel", *words)
    return pool.exec(f"sentinel-sentinel-{number}", *call).split()


def primary(pool: Pool) -> str:
    """The Pod that all sentinels name; empty while they differ."""
    named = {ask_sentinel(pool, number, "get-master-addr-by-name", "kvpool")[0] for number in range(3)}
    if len(named) > 1:
        return ""
    pod, _, domain = named.pop().partition(".")
    assert domain == f"sentinel-members.{NAMESPACE}.svc.cluster.local"
    return pod


def follows(pool: Pool, pod: str, other: str) -> bool:
    """A Pod that is a replica of another one, by that one's name, and has all that it has."""
    try:
        role = pool.exec(pod, "valkey-cli", "--user", "kvpool", "role").split()
    except RuntimeError:  # it starts
        return False
    return role[0] == "slave" and role[1].partition(".")[0] == other and role[3] == "connected"


@pytest.fixture(scope="module", params=["Valkey", pytest.param("Redis", marks=pytest.mark.slow)])
def server(request: pytest.FixtureRequest) -> str:
    """``spec.backend.type`` of the group."""
    return str(request.param)


def all_follow(pool: Pool) -> str:
    """Wait until all other servers follow the one that the sentinels name; returns it. Shows the logs if they don't."""
    wait_until("the sentinels agree", lambda: primary(pool), REPLACED_S, poll_s=0.5)
    first = primary(pool)
    try:
        for other in {*pool.pods("store")} - {first}:
            wait_until(f"{other} follows", lambda other=other: follows(pool, other, first), FOLLOWED_S, poll_s=0.5)
    except TimeoutError as error:
        pods = sorted({*pool.pods("store"), *pool.pods("sentinel")})
        logs = "\n".join(f"== {pod}\n{pool.kubectl('logs', pod, '--tail=40')}" for pod in pods)
        raise TimeoutError(f"{error} {first}\n{logs}") from None
    return first


@dataclass(frozen=True)
class Fresh:
    """A group, and which server was its first primary: the tests replace it, in any order."""

    pool: Pool
    first: str


@pytest.fixture(scope="module")
def fresh(stage: Stage, server: str) -> Iterator[Fresh]:
    def of_servers(manifest: dict[str, Any]) -> None:
        manifest["spec"]["backend"]["type"] = server

    pool = stage.pool("sentinel", of_servers)
    pool.ready()
    yield Fresh(pool, all_follow(pool))
    pool.delete()


@pytest.fixture
def group(fresh: Fresh) -> Pool:
    return fresh.pool


def test_a_group_with_sentinels_knows_its_members_by_name(fresh: Fresh) -> None:
    assert fresh.first == "sentinel-store-0"
    group = fresh.pool
    blocks_are_shared(group, "a", "b")
    assert sorted(group.pods("store")) == ["sentinel-store-0", "sentinel-store-1", "sentinel-store-2"]
    all_follow(group)
    assert ask_sentinel(group, 0, "ckquorum", "kvpool")[0] == "OK"


@pytest.mark.parametrize("how", ["deleted", "crashed"])
def test_a_lost_primary_is_replaced_and_comes_back_as_a_replica(group: Pool, server: str, how: str) -> None:
    """Deleted: its preStop hook hands over. Crashed: the sentinels have to notice."""
    blocks_are_shared(group, how)
    lost = all_follow(group)  # else what was written last may be lost with the primary
    (group.kill if how == "deleted" else group.crash)(lost)
    degraded = group.wait("BackendAvailable", "StoreDegraded", REPLACED_S)
    assert (degraded["status"], degraded["message"]) == (
        "True",
        f"{server} answers, but StatefulSet sentinel-store has 2 of 3 Pods ready",
    )
    wait_until("another primary", lambda: primary(group) not in ("", lost), REPLACED_S, poll_s=0.5)
    assert group.client("get", how, engine=1) == [HIT]
    blocks_are_shared(group, f"after-{how}")
    group.ready()
    assert all_follow(group) != lost


# ---- LMCache


@pytest.fixture
def lmcache(stage: Stage) -> Iterator[Pool]:
    stage.images("lmcache")
    pool = stage.pool("lmcache-server")
    pool.ready()
    yield pool
    pool.delete()


@pytest.mark.slow
def test_lmcache_server_is_empty_after_its_pod_was_killed(stage: Stage, lmcache: Pool) -> None:
    blocks_are_shared(lmcache, "a", "b")
    lmcache.replace("store")
    lmcache.ready()
    assert lmcache.client("get", "a", "b") == [MISS, MISS]
    blocks_are_shared(lmcache, "a", "c")


@pytest.mark.slow
def test_the_operator_asks_lmcache_server_for_its_health(stage: Stage, lmcache: Pool) -> None:
    """A second pool takes the first one's server for one that somebody else runs."""

    def here(manifest: dict[str, Any]) -> None:
        manifest["spec"]["backend"]["external"]["host"] = f"lmcache-server-store.{NAMESPACE}.svc.cluster.local"

    other = stage.pool("external-lmcache-server", here)
    other.wait("BackendAvailable", "StoreReady", 30)
    lmcache.hold("deployment/lmcache-server-store", 0)
    other.wait("BackendAvailable", "Unreachable", 60)
    lmcache.release()
    other.wait("BackendAvailable", "StoreReady", 60)
    blocks_are_shared(other, "d")
    assert lmcache.client("get", "d") == [HIT]
    other.delete()


# ---- Mooncake


BLOCKS = [f"block-{number}" for number in range(16)]
"""So many that each of three stores has some."""


def last_store_leaves(pool: Pool, left: int) -> None:
    """It is scaled away and moves its blocks to the others first, though somebody has just read them."""
    leaving = f"{pool.name}-store-{left}"
    pool.hold(f"statefulset/{pool.name}-store", left)
    # Sooner than after its grace period: 15 s in which nothing moves any more, for the last lease, and then at once.
    wait_until(f"{leaving} is gone", lambda: not pool.exists(leaving), 60, poll_s=0.5)
    degraded = pool.wait("BackendAvailable", "StoreDegraded", 20)
    assert degraded["message"] == (
        f"Mooncake answers, but StatefulSet {pool.name}-store has {left} of {left + 1} Pods ready"
    )
    wait_until("all blocks are there", lambda: set(pool.client("get", *BLOCKS)) == {HIT}, 60, poll_s=0.5)
    pool.release()
    pool.ready()


@pytest.mark.slow
def test_mooncake_with_one_master(stage: Stage) -> None:
    """A store that leaves moves its blocks, one that is killed is forgotten, a lost master takes all along."""
    stage.images("mooncake")
    pool = stage.pool("mooncake")
    pool.ready()
    blocks_are_shared(pool, *BLOCKS)
    last_store_leaves(pool, 1)
    blocks_are_shared(pool, *(again := [f"again-{number}" for number in range(16)]))
    pool.kill("mooncake-store-1")
    wait_until("the lost store is forgotten", lambda: set(pool.client("get", *again)) <= {HIT, MISS}, 60, poll_s=0.5)
    assert HIT in pool.client("get", *again)
    pool.ready()
    blocks_are_shared(pool, "after-the-store")
    pool.replace("master")
    pool.ready()
    assert set(pool.client("get", *BLOCKS)) == {MISS}
    blocks_are_shared(pool, "after-the-master")
    pool.delete()


@pytest.mark.slow
def test_mooncake_with_three_masters_and_three_members_of_etcd(stage: Stage, folder: Path) -> None:
    """Any master may go, and what is stored, in two copies, outlives that, the loss of etcd's majority, and one store."""
    stage.images("mooncake", "etcd")
    stage.volumes(folder, "4Gi", *(f"data-mooncake-ha-etcd-{number}" for number in range(3)))
    pool = stage.pool("mooncake-ha")
    pool.ready()
    assert [len(pool.pods(component)) for component in ("master", "store", "etcd")] == [3, 3, 3]
    blocks_are_shared(pool, "a", "b", *BLOCKS)
    last_store_leaves(pool, 2)

    leader = next(name for name, pod in pool.pods("master").items() if role_of_master(pod) == "leader")
    pool.kill(leader)
    wait_until("the blocks are found again", lambda: pool.client("get", "a", "b") == [HIT, HIT], 180, poll_s=1)
    pool.ready()

    pool.hold("statefulset/mooncake-ha-etcd", 1)
    lost = pool.wait("BackendAvailable", "EtcdQuorumLost", 60)
    assert lost["status"] == "False"
    assert "members of etcd are ready, 2 are needed" in lost["message"]
    pool.release()
    pool.ready()
    wait_until("the blocks are found again", lambda: pool.client("get", "a", "b") == [HIT, HIT], 120, poll_s=1)
    blocks_are_shared(pool, "after-the-quorum")
    pool.delete()


def role_of_master(pod: dict[str, Any]) -> str:
    """What a master says of itself, to its administration's port."""
    with urllib.request.urlopen(f"http://{pod['status']['podIP']}:9003/role", timeout=5) as answer:
        return str(answer.read().decode())


@pytest.mark.slow
def test_mooncake_whose_clients_meet_through_etcd(stage: Stage, folder: Path) -> None:
    stage.images("mooncake", "etcd")
    stage.volumes(folder, "2Gi", "data-mooncake-etcd-etcd-0")
    pool = stage.pool("mooncake-etcd")
    pool.ready()
    blocks_are_shared(pool, "a", "b")
    pool.delete()
