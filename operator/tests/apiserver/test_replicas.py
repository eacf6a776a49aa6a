"""Two replicas: who leads, how fast another takes over, and that no two ever write at the same time.

The API server's audit log has every write with the moment of its arrival, and by the name that each
process gives itself, who sent it.
"""

from __future__ import annotations

import base64
import json
import re
import signal
import ssl
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import yaml

from testkit.patience import PATIENCE_S
from testkit.ports import free_port

from .conftest import POOL, SYSTEM, AuditLog, Operator
from .kubectl import Kubectl, eventually
from .proxy import Proxy

FAIL_OVER_S = 20.0
"""Seconds until another replica writes, whatever became of the leader."""
CLEAN_S = 3.0
"""The same where the leader was asked to end."""


@dataclass(frozen=True)
class Write:
    """A request that asked for a change of anything but the Lease."""

    at: str
    identity: str
    uri: str


class Pair:
    """Two replicas with a cable to the API server each."""

    def __init__(self, operator: Operator, work: Path) -> None:
        kubeconfig = yaml.safe_load(operator.kubeconfig.read_text())
        server = kubeconfig["clusters"][0]["cluster"]["server"]
        settings = yaml.safe_load(operator.settings.read_text())
        self.cables: dict[Operator, Proxy] = {}
        for number, port in enumerate((operator.webhook_port, free_port())):
            folder = work / str(number)
            folder.mkdir()
            cable = Proxy(server)
            kubeconfig["clusters"][0]["cluster"]["server"] = cable.url
            path = folder / "kubeconfig"
            path.write_text(yaml.safe_dump(kubeconfig))
            self.cables[Operator(path, folder, settings, port)] = cable

    def start(self) -> None:
        for one in self.cables:
            one.start()

    def leader(self) -> Operator:
        """Return the replica that leads, as soon as one does."""
        found = eventually(lambda: [one for one in self.cables if one.leads()], what="a leader")
        assert len(found) == 1
        return found[0]

    def other(self, one: Operator) -> Operator:
        (found,) = [each for each in self.cables if each is not one]
        return found

    def end(self) -> None:
        for one, cable in self.cables.items():
            cable.mend()
            one.end()
            cable.close()


@pytest.fixture
def pair(operator: Operator, tmp_path: Path) -> Iterator[Pair]:
    """Two replicas in the place of the one that other tests have."""
    operator.stop()
    made = Pair(operator, tmp_path)
    try:
        made.start()
        made.leader()
        yield made
    finally:
        made.end()
        operator.start()


def writes(audit_log: AuditLog, *identities: str) -> list[Write]:
    """Return the writes of these processes in the order in which they came."""
    found = []
    for line in audit_log.lines():
        event = json.loads(line)
        name = re.fullmatch(r"kvpool-operator \((.*)\)", event.get("userAgent", ""))
        if name is None or name[1] not in identities or event["verb"] in ("get", "list", "watch"):
            continue
        if event["objectRef"]["resource"] != "leases":
            found.append(Write(event["requestReceivedTimestamp"], name[1], event["requestURI"]))
    return sorted(found, key=lambda one: one.at)


def turns(found: list[Write]) -> list[str]:
    """Return who wrote, one entry for all writes of one process that no other interrupts."""
    return [identity for identity, _ in groupby(found, key=lambda one: one.identity)]


def reconciled(kubectl: Kubectl, name: str, *, within: float) -> float:
    """Apply a pool, and return the seconds until it has a status."""
    began = time.monotonic()
    kubectl.apply_pool(name, POOL)
    eventually(lambda: kubectl.condition(name, "Ready"), seconds=within, what=f"a status of {name}")
    return time.monotonic() - began


def taken_over(kubectl: Kubectl, pair: Pair, former: Operator, *, within: float) -> float:
    """Return the seconds until the other replica has written a pool that nobody wrote before."""
    seconds = reconciled(kubectl, "after", within=within)
    assert pair.other(former).leads()
    return seconds


def said(kind: str, seconds: float) -> None:
    print(f"fail-over, {kind}: {seconds:.1f} s")  # noqa: T201


def test_both_answer_the_webhook_and_one_leads(kubectl: Kubectl, pair: Pair) -> None:
    reconciled(kubectl, "demo", within=PATIENCE_S)
    kubectl.await_condition("demo", "ConfigRendered", reason="Rendered")
    system = Kubectl(kubectl.environment, SYSTEM)
    configuration = kubectl.must_get("mutatingwebhookconfiguration", "kvpool-operator")
    bundle = configuration["webhooks"][0]["clientConfig"]["caBundle"]
    trust = ssl.create_default_context(cadata=base64.b64decode(bundle).decode())
    for one in pair.cables:
        answer = asked(one, kubectl.namespace, trust)
        assert answer["patchType"] == "JSONPatch"
    lease = system.must_get("lease", "kvpool-operator")["spec"]
    assert lease["holderIdentity"] == pair.leader().identity
    assert not pair.other(pair.leader()).leads()


def asked(operator: Operator, namespace: str, trust: ssl.SSLContext) -> dict[str, Any]:
    """Ask one replica's webhook about a Pod, as the API server does."""
    spec = {"containers": [{"name": "main", "image": "vllm/vllm-openai", "args": ["--model", "m"]}]}
    metadata = {"name": "p", "annotations": {"kvpool.dev/pool": "demo"}}
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
    review = {"request": {"uid": "u", "namespace": namespace, "object": body}}
    request = urllib.request.Request(
        f"https://127.0.0.1:{operator.webhook_port}/pods",
        json.dumps(review).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=PATIENCE_S, context=trust) as answer:  # noqa: S310
        found: dict[str, Any] = json.load(answer)["response"]
    return found


def test_a_clean_stop(kubectl: Kubectl, pair: Pair, audit_log: AuditLog) -> None:
    former = pair.leader()
    reconciled(kubectl, "before", within=PATIENCE_S)
    former.signal(signal.SIGTERM)
    began = time.monotonic()
    eventually(pair.other(former).leads, what="the other leads")
    seconds = time.monotonic() - began
    said("a clean stop", seconds)
    former.end()
    reconciled(kubectl, "after", within=PATIENCE_S)
    identities = [former.identity, pair.other(former).identity]
    assert turns(writes(audit_log, *identities)) == identities
    assert seconds < CLEAN_S


def test_a_kill(kubectl: Kubectl, pair: Pair, audit_log: AuditLog) -> None:
    former = pair.leader()
    reconciled(kubectl, "before", within=PATIENCE_S)
    former.signal(signal.SIGKILL)
    said("kill -9", taken_over(kubectl, pair, former, within=FAIL_OVER_S))
    identities = [former.identity, pair.other(former).identity]
    assert turns(writes(audit_log, *identities)) == identities


def test_a_stopped_leader_writes_nothing_when_it_wakes(kubectl: Kubectl, pair: Pair, audit_log: AuditLog) -> None:
    former = pair.leader()
    reconciled(kubectl, "before", within=PATIENCE_S)
    # It is stopped with work in hand: pools that it has begun to make.
    for number in range(12):
        kubectl.apply_pool(f"many-{number}", POOL)
    former.signal(signal.SIGSTOP)
    said("SIGSTOP", taken_over(kubectl, pair, former, within=FAIL_OVER_S))
    former.signal(signal.SIGCONT)
    follower = re.compile(rf"election: {re.escape(former.identity)}: following ")
    eventually(lambda: follower.search(former.log), what="the former leader follows")
    reconciled(kubectl, "later", within=PATIENCE_S)
    identities = [former.identity, pair.other(former).identity]
    assert turns(writes(audit_log, *identities)) == identities
    assert not former.leads()


def test_a_leader_that_is_cut_off(kubectl: Kubectl, pair: Pair, audit_log: AuditLog) -> None:
    former = pair.leader()
    reconciled(kubectl, "before", within=PATIENCE_S)
    for number in range(12):
        kubectl.apply_pool(f"many-{number}", POOL)
    pair.cables[former].cut()
    said("a cut", taken_over(kubectl, pair, former, within=FAIL_OVER_S))
    assert not former.leads()
    pair.cables[former].mend()
    # It goes on as a follower, whose caches are filled and whose webhook answers.
    follower = re.compile(rf"election: {re.escape(former.identity)}: following ")
    eventually(lambda: follower.search(former.log), what="the former leader follows")
    reconciled(kubectl, "later", within=PATIENCE_S)
    second = pair.other(former)
    identities = [former.identity, second.identity]
    assert turns(writes(audit_log, *identities)) == identities
    second.stop()
    reconciled(kubectl, "last", within=PATIENCE_S)
    assert turns(writes(audit_log, *identities)) == [*identities, former.identity]
