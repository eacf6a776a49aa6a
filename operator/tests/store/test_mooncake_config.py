"""Mooncake and etcd started from what the operator writes: blocks go in and out, a lost leader is replaced."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.cluster.local import machine
from e2e.cluster.progress import Progress
from kvpool_operator.api import Settings, parse_spec
from kvpool_operator.desired import Manifest, Material, Pool, desired
from kvpool_operator.desired.stores import etcd, mooncake
from kvpool_operator.desired.stores.remotes import remote
from kvpool_operator.observe.external import probe_etcd
from kvpool_operator.status.observed import StoreState
from testkit.engine import ENGINE_PYTHON, ROOT
from testkit.patience import PATIENCE_S, promptly
from testkit.ports import free_port
from testkit.servers import CACHE

from .pods import PodProcess, anywhere, fresh_ports, localized, wait_until

pytestmark = pytest.mark.timeout(600)
OVERLAY = ROOT / ".venvs/mooncake"
LIBRARIES = ":".join(str(path) for path in sorted((OVERLAY / "debian").glob("**/*-linux-gnu")))
MASTERS = [f"127.0.12.{number}" for number in (1, 2, 3)]
STORES = [f"127.0.13.{number}" for number in (1, 2)]
MEMBERS = [f"127.0.14.{number}" for number in (1, 2, 3)]
_CLIENT = """
import base64, json, sys
from mooncake.store import MooncakeDistributedStore
store = MooncakeDistributedStore()
master, metadata, script = sys.argv[1], sys.argv[2], json.load(sys.stdin)
assert store.setup("127.0.0.1", metadata, 0, 16 << 20, "tcp", "", master) == 0
found = []
for verb, key, value in script:
    if verb == "put":
        found.append(store.put(key, base64.b64decode(value)))
    else:
        found.append(base64.b64encode(store.get(key)).decode())
print("RESULT " + json.dumps(found))
store.close()
"""


class Store:
    """The processes of one pool's Mooncake."""

    def __init__(self, spec: dict[str, Any], work: Path) -> None:
        if not (OVERLAY / "mooncake").exists() or not ENGINE_PYTHON.exists():
            pytest.skip("Mooncake is missing: tools/setup.sh engine servers")
        self.pool = Pool("demo", "team", "uid", parse_spec({"backend": spec}), Material("p", "1"), Settings())
        manifests = {(one["kind"], one["metadata"]["name"]): one for one in desired(self.pool)}
        self.ports = fresh_ports(
            mooncake.RPC_PORT, mooncake.ADMIN_PORT, mooncake.CLIENT_HTTP_PORT, etcd.CLIENT_PORT, etcd.PEER_PORT
        )
        members = [endpoint.rpartition(":")[0] for endpoint in etcd.endpoints(self.pool)]
        self.names = dict(zip(members, MEMBERS, strict=False))
        self.names["demo-master.team.svc.cluster.local"] = MASTERS[0]
        self.pods: dict[str, PodProcess] = {}
        self.work = work
        self.local_ports: list[int] = []
        if ("StatefulSet", "demo-etcd") in manifests:
            self._etcd(manifests["StatefulSet", "demo-etcd"])
        config = work / "master.yaml"
        config.write_text(self._local(manifests["ConfigMap", "demo-master"]["data"][mooncake.CONFIG_FILE]))
        replicas = manifests["Deployment", "demo-master"]["spec"]["replicas"]
        self.masters_of_several = MASTERS if replicas > 1 else []
        for host in MASTERS[:replicas]:
            self._pod(
                host, manifests["Deployment", "demo-master"], {f"{mooncake.CONFIG_DIRECTORY}/master.yaml": str(config)}
            )
        stores = manifests["StatefulSet", "demo-store"]
        for host in STORES[: stores["spec"]["replicas"]]:
            self._pod(host, stores, {})
        (store,) = stores["spec"]["template"]["spec"]["containers"]
        self._leave: list[str] = [self._local(word) for word in store["lifecycle"]["preStop"]["exec"]["command"]]

    def _local(self, text: str, **further: str) -> str:
        return localized(text, {**self.names, **further}, self.ports)

    def _pod(self, host: str, workload: Manifest, paths: dict[str, str]) -> None:
        (container,) = workload["spec"]["template"]["spec"]["containers"]
        words: list[str] = container["command"]
        at = next(number for number, word in enumerate(words) if word in ("mooncake_master", "mooncake_client"))
        program, flags = words[at], words[at + 1 :]
        environment = {one["name"]: one["value"] for one in container["env"] if "value" in one}
        own = {**self.names, **paths, "$(POD_IP)": host}
        command = [
            *words[:at],
            str(OVERLAY / "mooncake" / program),
            *(localized(flag, own, self.ports) for flag in flags),
        ]
        if program == "mooncake_master":
            # On one machine the others have the same port; in a cluster each Pod has its own address anyway.
            command += [
                f"--metrics_host={host}",
                *([] if "--rpc_address" in " ".join(flags) else [f"--rpc_address={host}"]),
            ]
        if program == "mooncake_client":
            self.local_ports.append(free_port())
            command += [f"--port={self.local_ports[-1]}"]  # its local socket is named after it
        self.pods[host] = PodProcess(
            host, command, self.work / host / "tmp", {**environment, "LD_LIBRARY_PATH": LIBRARIES}
        )

    def _etcd(self, workload: Manifest) -> None:
        (container,) = workload["spec"]["template"]["spec"]["containers"]
        suffix = ".demo-etcd.team.svc.cluster.local"
        for number, host in enumerate(MEMBERS[: workload["spec"]["replicas"]]):
            own = {
                **self.names, f"$(POD_NAME){suffix}": host, "$(POD_NAME)": f"demo-etcd-{number}", "0.0.0.0": host,  # noqa: S104
                etcd.DATA_DIRECTORY: str(self.work / f"data-{number}"),
            }  # fmt: skip
            flags = [localized(flag, own, self.ports) for flag in container["args"]]
            self.pods[host] = PodProcess(
                host, [str(machine.etcd(CACHE, Progress())), *flags], self.work / host / "tmp", {}
            )

    def start(self, *hosts: str) -> None:
        for host in hosts:
            if host in self.pods:
                self.pods[host].start()

    def end_in_order(self, host: str) -> None:
        """As the kubelet ends the Pod of a store: the hook, then SIGTERM."""
        self.pods[host].exec(self._leave, POD_IP=host)
        self.pods[host].stop()

    def segments(self, *masters: str) -> list[str]:
        """Addresses of the stores that the leader among the masters counts on."""
        pages = [self.page(host, mooncake.ADMIN_PORT, "/get_all_segments") for host in masters or (MASTERS[0],)]
        return sorted(segment.rpartition(":")[0] for page in pages for segment in page.split())

    def page(self, host: str, port: int, path: str) -> str:
        """An HTTP answer; empty when there is none."""
        try:
            with urllib.request.urlopen(f"http://{host}:{self.ports[port]}{path}", timeout=2) as answer:
                return str(answer.read().decode())
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return ""

    def ready(self, host: str) -> bool:
        """By the probe that the Pod has; of a store, the master has to know it besides."""
        if host in STORES:
            masters = [master for master in MASTERS if master in self.pods]
            is_healthy = "healthy" in self.page(host, mooncake.CLIENT_HTTP_PORT, "/health")
            return is_healthy and host in self.segments(*masters)
        if self.pods[host].name not in self.masters_of_several:
            with socket.socket() as attempt:
                return attempt.connect_ex((host, self.ports[mooncake.RPC_PORT])) == 0
        command = mooncake.LEADER_IS_KNOWN.format(port=self.ports[mooncake.ADMIN_PORT]).replace("127.0.0.1", host)
        return (
            subprocess.run(["bash", "-c", command], check=False, timeout=10, stderr=subprocess.DEVNULL).returncode == 0
        )

    def leader(self) -> str | None:
        """The master that serves."""
        return next(
            (host for host in MASTERS if self.page(host, mooncake.ADMIN_PORT, "/role").strip() == "leader"), None
        )

    def await_ready(self, *hosts: str) -> None:
        for host in hosts:
            if host in self.pods:
                try:
                    wait_until(f"{host} is ready", lambda host=host: self.ready(host), 2 * PATIENCE_S, 0.2)
                except TimeoutError as error:
                    raise AssertionError(f"{error}: {self.pods[host].log[-3000:]}") from None

    def engine(self, script: list[tuple[str, str, bytes]]) -> list[Any]:
        """Mooncake's own client, where engines would have it, with the addresses of the connector's file."""
        section = remote(self.pool)
        assert section is not None
        words = [(verb, key, base64.b64encode(value).decode()) for verb, key, value in script]
        addresses = [self._local(section[name]) for name in ("master", "metadata_server")]
        done = subprocess.run(
            [str(ENGINE_PYTHON), "-c", _CLIENT, *addresses], input=json.dumps(words),
            env={**os.environ, "PYTHONPATH": str(OVERLAY), "LD_LIBRARY_PATH": LIBRARIES},
            capture_output=True, text=True, timeout=90, check=False,
        )  # fmt: skip
        answer = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
        assert answer is not None, done.stderr[-3000:] + done.stdout[-1000:]
        found: list[Any] = json.loads(answer.removeprefix("RESULT "))
        return [base64.b64decode(one) if isinstance(one, str) else one for one in found]

    def close(self) -> None:
        for pod in self.pods.values():
            pod.kill()


def _store(spec: dict[str, Any], work: Path) -> Iterator[Store]:
    made = Store({"type": "Mooncake", "memory": "256Mi", **spec}, work)
    try:
        made.start(*MEMBERS, *MASTERS, *STORES)
        made.await_ready(*MASTERS, *STORES)
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    yield from _store({"mooncake": {"replicas": 2}}, tmp_path_factory.mktemp("plain"))


@pytest.fixture
def plain(shared: Store) -> Store:
    """Return the shared store once its master counts each store one time.

    The master still counts the segment of a store that an earlier test ended, until ``client_ttl``.
    """
    wait_until("the master counts each store once", lambda: shared.segments() == STORES, poll_s=0.2)
    return shared


@pytest.fixture
def ha(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """For one test: each takes away what another would need."""
    yield from _store({"mooncake": {"ha": True, "metadata": "Etcd"}}, tmp_path_factory.mktemp("ha"))


BLOCK = bytes(range(256)) * 4096


def test_what_an_engine_puts_another_gets(plain: Store) -> None:
    assert plain.engine([("put", "block", BLOCK)]) == [0]
    assert plain.engine([("get", "block", b""), ("get", "other", b"")]) == [BLOCK, b""]


def test_stores_listen_on_the_ports_that_the_network_policy_opens(plain: Store) -> None:
    segments = plain.page(MASTERS[0], mooncake.ADMIN_PORT, "/get_all_segments").split()
    assert sorted(segment.rpartition(":")[0] for segment in segments) == STORES
    assert all(mooncake.NAME_PORTS[0] <= int(one.rpartition(":")[2]) <= mooncake.NAME_PORTS[1] for one in segments)
    allowed = {
        *range(*mooncake.DATA_PORTS),
        mooncake.DATA_PORTS[1],
        plain.ports[mooncake.CLIENT_HTTP_PORT],
        *plain.local_ports,
    }
    for host in STORES:
        processes = [f"pid={pid}," for pid in plain.pods[host].pids]
        lines = subprocess.run(["ss", "-ltnp"], capture_output=True, text=True, check=True).stdout.splitlines()
        ports = {
            int(line.split()[3].rpartition(":")[2]) for line in lines if any(process in line for process in processes)
        }
        assert ports
        assert ports <= allowed


def test_the_segment_leaves_room_below_the_memory_limit(plain: Store) -> None:
    """Asked of each segment: the master's sum still counts those of stores that were lost."""
    segments = plain.page(MASTERS[0], mooncake.ADMIN_PORT, "/get_all_segments").split()
    assert len(segments) == len(STORES)
    for segment in segments:
        page = plain.page(MASTERS[0], mooncake.ADMIN_PORT, f"/query_segment?segment={segment}")
        assert f"Capacity(bytes) : {mooncake.segment_bytes('256Mi')}" in page
    assert mooncake.segment_bytes("256Mi") * 1.15 + (80 << 20) < 256 << 20


def puts(prefix: str) -> list[tuple[str, str, bytes]]:
    return [("put", f"{prefix}{number}", BLOCK) for number in range(24)]


def found(store: Store, prefix: str) -> int:
    return store.engine([("get", key, b"") for _, key, _ in puts(prefix)]).count(BLOCK)


def test_a_store_that_leaves_hands_its_blocks_to_the_other_and_is_forgotten_at_once(plain: Store) -> None:
    assert set(plain.engine(puts("leaving"))) == {0}
    plain.end_in_order(STORES[1])
    with promptly(2):  # and not only when it was silent for client_ttl
        wait_until("the master forgot it", lambda: plain.segments() == [STORES[0]], poll_s=0.05)
    assert found(plain, "leaving") == 24
    plain.start(STORES[1])
    plain.await_ready(STORES[1])


def test_a_store_that_is_lost_takes_its_blocks_along(plain: Store) -> None:
    assert set(plain.engine(puts("lost"))) == {0}
    plain.pods[STORES[1]].stop()
    wait_until("the master forgot it after client_ttl", lambda: plain.segments() == [STORES[0]], poll_s=0.2)
    assert 0 < found(plain, "lost") < 24
    # The last one has nowhere to move to, and ends all the same.
    plain.end_in_order(STORES[0])
    plain.start(*STORES)
    plain.await_ready(*STORES)


def test_a_store_ends_without_a_master_too(plain: Store) -> None:
    plain.pods[MASTERS[0]].stop()
    plain.end_in_order(STORES[1])
    plain.start(MASTERS[0], STORES[1])
    plain.await_ready(MASTERS[0], *STORES)


def test_a_lost_leader_is_replaced_and_blocks_are_still_found(ha: Store) -> None:
    lost = ha.leader()
    assert lost is not None
    assert ha.engine([("put", "block", BLOCK)]) == [0]
    ha.pods[lost].kill()
    wait_until("another leader", lambda: ha.leader() not in (None, lost), 2 * PATIENCE_S, 0.5)
    # The stores have to find the new leader first; until then it is a miss.
    wait_until("the block is found again", lambda: ha.engine([("get", "block", b"")]) == [BLOCK], 150, 1)


def test_without_a_quorum_the_masters_are_not_ready_and_the_probe_says_why(ha: Store) -> None:
    endpoints = tuple(f"{host}:{ha.ports[etcd.CLIENT_PORT]}" for host in MEMBERS)

    def state() -> StoreState:
        return asyncio.run(probe_etcd(anywhere(), endpoints)).state

    ha.pods[MEMBERS[0]].kill()
    wait_until("two of three members serve", lambda: state() is StoreState.AVAILABLE, poll_s=0.2)
    ha.pods[MEMBERS[1]].kill()
    wait_until("one of three does not", lambda: state() is StoreState.NO_QUORUM, poll_s=0.2)
    assert "of 3 members of etcd are healthy, 2 are needed" in asyncio.run(probe_etcd(anywhere(), endpoints)).detail
    running = [host for host in MASTERS if ha.pods[host].runs]
    wait_until("no master is ready", lambda: not any(ha.ready(host) for host in running), 2 * PATIENCE_S, 0.5)
