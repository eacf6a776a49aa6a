"""Hostile and mutated pools and Pods against the real API server and the operator, which acts as its own account."""

from __future__ import annotations

import ast
import asyncio
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from kvpool_operator.desired.names import CONSUMER_LABEL, MANAGED_BY, MANAGED_BY_LABEL
from kvpool_operator.injection.names import INJECTED, SKIP_REASON
from kvpool_operator.kube import (
    CHILD_KINDS,
    NAMESPACE,
    POD,
    POOL,
    WEBHOOKS,
    ApiError,
    Client,
    NotFound,
    Refused,
    connect,
)
from testkit.patience import PATIENCE_S
from testkit.permissions import uses_of

from . import hostile
from .conftest import POOL as POOL_SPEC
from .conftest import SYSTEM, AuditLog, Operator
from .injection import pod, pod_spec
from .kubectl import Kubectl
from .watched import CONNECT, LOOK_UP

_log = logging.getLogger(__name__)
Ask = tuple[str, str, str]
BATCH = 25
"""Pools that are there at a time."""
SAMPLE, ALL = 150, 2000


def manifest(namespace: str, name: str, spec: Any) -> dict[str, Any]:
    metadata = {"namespace": namespace, "name": name}
    return {"apiVersion": POOL.api_version, "kind": POOL.kind, "metadata": metadata, "spec": spec}


class Attack:
    """Creates pools, and notes what became of them."""

    def __init__(self, client: Client, namespace: str) -> None:
        self._client = client
        self._namespace = namespace
        self.refused = 0
        self.reported = 0
        self.faults: list[str] = []

    async def run(self, specs: Sequence[dict[str, Any]]) -> None:
        for start in range(0, len(specs), BATCH):
            batch = [(f"h{start + place}", spec) for place, spec in enumerate(specs[start : start + BATCH])]
            made = [name for name, spec in batch if await self._create(name, spec)]
            for name in made:
                await self._wait_for_status(name, dict(batch)[name])
            for name in made:
                await self._delete(name)

    async def _create(self, name: str, spec: Any) -> bool:
        try:
            await self._client.create(POOL, manifest(self._namespace, name, spec))
        except ApiError as error:
            if not isinstance(error, Refused) and "too large" not in error.message:
                raise
            self.refused += 1
            if "too large" not in error.message and "spec" not in error.message and "json" not in error.message.lower():
                self.faults.append(f"refused without a path: {error.message[:300]}: {str(spec)[:300]}")
            return False
        return True

    async def _wait_for_status(self, name: str, spec: Any) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not (status := (await self._client.get(POOL, self._namespace, name)).get("status")):
                    await asyncio.sleep(0.05)
        except TimeoutError:
            self.faults.append(f"no status: {str(spec)[:300]}")
            return
        ready = status["conditions"][0]
        if (ready["status"], ready["reason"]) == ("Unknown", "OperatorFault") or not ready["message"]:
            self.faults.append(f"{ready}: {str(spec)[:300]}")
        self.reported += 1

    async def _delete(self, name: str) -> None:
        body = await self._client.get(POOL, self._namespace, name)
        await self._client.delete(POOL, self._namespace, name, uid=body["metadata"]["uid"])
        while True:
            try:
                await self._client.get(POOL, self._namespace, name)
            except NotFound:
                return


COUNTS = [pytest.param(SAMPLE, id="a sample"), pytest.param(ALL, marks=pytest.mark.slow, id="all")]
SEED = int(os.environ.get("KVPOOL_HOSTILE_SEED", "14"))
ACCOUNT = (SYSTEM, "kvpool-operator")
OWN = f"{MANAGED_BY_LABEL}={MANAGED_BY}"
EVERYWHERE: set[Ask] = {
    *((verb, kind.plural, OWN) for kind in CHILD_KINDS for verb in ("list", "watch")),
    *((verb, POD.plural, CONSUMER_LABEL) for verb in ("list", "watch")),
    *((verb, POOL.plural, "") for verb in ("list", "watch")),
    *((verb, WEBHOOKS.plural, ACCOUNT[1]) for verb in ("get", "patch")),
    ("list", POD.plural, ""),
}
"""What the operator asks for in no namespace, whatever pools and Pods say: its watches, the webhook's certificate, and the list
by which it finds Pods that the webhook missed."""
STORE = ("127.0.0.1", 9)
"""The one address that a pool among the hostile ones names and that can be asked."""
MARKS = (INJECTED, SKIP_REASON)
LONGEST_TURN_S = {SAMPLE: 0.2, ALL: 0.05}
"""Of the operator's event loop, in CPU time: the goal for all of them, and more for the sample, since hosts differ."""


def asked_everywhere(lines: Iterable[str]) -> set[Ask]:
    """Return the requests for no namespace in an audit log: verb, resource, and the object's name or the selector."""
    found = set()
    for line in lines:
        event = json.loads(line)
        target = event.get("objectRef", {})
        if target and not target.get("namespace"):
            query = parse_qs(urlsplit(event["requestURI"]).query)
            found.add((event["verb"], target["resource"], target.get("name") or query.get("labelSelector", [""])[0]))
    return found


def read_connection(line: str) -> tuple[str, str, int]:
    """Return what was done, the host and the port."""
    event, host, port = line.split(" ")
    return event, ast.literal_eval(host), int(port)


class Watched:
    """What the operator did and said in the test."""

    def __init__(self, operator: Operator, audit_log: AuditLog, namespace: str) -> None:
        self._operator = operator
        self._audit_log = audit_log
        self._namespace = namespace
        self._connections_start = len(operator.connections)
        self._log_start = len(operator.log)
        self._audit_start = len(audit_log.lines())
        _log.info("the longest turn of the event loop before: %.3f s", self._longest_turn_s())

    def assert_harmless(self, count: int) -> None:
        """No exception; no request and no connection but what the test's own namespace may cause."""
        said = self._operator.log[self._log_start :]
        assert "Traceback" not in said
        assert "a fault of the operator" not in said
        self._assert_requests_are_own()
        self._assert_connections_are_own()
        longest_s = self._longest_turn_s()
        _log.info("the longest turn of the event loop: %.3f s", longest_s)
        assert longest_s < LONGEST_TURN_S[count]

    def _assert_requests_are_own(self) -> None:
        """Namespaces of other tests may be on their way out. Any namespace may be asked whether it takes a pool."""
        lines = self._audit_log.lines()[self._audit_start :]
        uses = uses_of(ACCOUNT, lines)
        assert uses
        own = re.compile(f"{self._namespace}|{SYSTEM}|t[0-9]+-{os.getpid()}|")
        within = [use for use in uses if use.resource != NAMESPACE.plural]
        assert [use for use in within if not own.fullmatch(use.namespace)] == []
        assert asked_everywhere(lines) - EVERYWHERE == set()

    def _assert_connections_are_own(self) -> None:
        """The first ones were made before there was a pool: to the API server."""
        seen = [read_connection(line) for line in self._operator.connections]
        api_server = seen[0]
        before = {api_server, (CONNECT, *STORE), (LOOK_UP, *STORE)}
        assert set(seen[self._connections_start :]) - before == set()

    def _longest_turn_s(self) -> float:
        """Return the longest one since this was asked last."""
        name = "kvpool_operator_longest_turn_seconds "
        (turn,) = [line for line in self._operator.metrics() if line.startswith(name)]
        return float(turn.removeprefix(name))


@pytest.fixture
def watched(operator: Operator, audit_log: AuditLog, kubectl: Kubectl) -> Watched:
    return Watched(operator, audit_log, kubectl.namespace)


@pytest.fixture
def connected(kubectl: Kubectl, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client of this process finds the test's cluster, as its administrator."""
    monkeypatch.setenv("KUBECONFIG", kubectl.environment["KUBECONFIG"])


@pytest.mark.usefixtures("connected")
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.timeout(40 * PATIENCE_S, func_only=True)
def test_pools(kubectl: Kubectl, watched: Watched, count: int) -> None:
    """Each is refused with a path, or has a status that names a condition."""

    async def attack() -> Attack:
        client = connect()
        try:
            found = Attack(client, kubectl.namespace)
            await found.run(list(hostile.pools(count, SEED)))
            return found
        finally:
            await client.close()

    found = asyncio.run(attack())
    _log.info("seed %d: %d refused, %d with a status, faults: %s", SEED, found.refused, found.reported, found.faults)
    assert found.faults == []
    assert found.refused + found.reported == count
    assert found.refused > count / 4
    assert found.reported > count / 20
    watched.assert_harmless(count)


@pytest.mark.usefixtures("connected")
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.timeout(40 * PATIENCE_S, func_only=True)
def test_pods(kubectl: Kubectl, watched: Watched, count: int) -> None:
    """Each is let in, with the cache or with a reason, or refused by the API server itself. Many of each kind are."""
    kubectl.apply_pool("demo", POOL_SPEC)
    kubectl.await_condition("demo", "ConfigRendered", reason="Rendered")

    async def attack() -> tuple[Counter[str], list[str]]:
        client = connect()
        outcomes: Counter[str] = Counter()
        faults: list[str] = []
        try:
            for number, (annotations, container) in enumerate(hostile.pods(count, SEED)):
                body = pod(f"p{number}", annotations=annotations)
                body["spec"] = pod_spec(**container)
                body["metadata"]["namespace"] = kubectl.namespace
                try:
                    made = await client.create(POD, body)
                except ApiError as error:
                    if not isinstance(error, Refused) and "too large" not in error.message:
                        raise
                    outcomes["refused"] += 1
                    continue
                marks = made["metadata"]["annotations"]
                outcome = next((mark for mark in MARKS if mark in marks), "unmarked")
                outcomes[outcome] += 1
                if annotations["kvpool.dev/pool"].strip() and outcome == "unmarked":
                    faults.append(f"{annotations}: {marks}")
                await client.delete(POD, kubectl.namespace, body["metadata"]["name"], uid=made["metadata"]["uid"])
        finally:
            await client.close()
        return outcomes, faults

    outcomes, faults = asyncio.run(attack())
    _log.info("seed %d: %s", SEED, outcomes)
    assert faults == []
    assert outcomes.total() == count
    assert outcomes["refused"] < count / 2
    assert all(outcomes[mark] > count / 50 for mark in MARKS), outcomes
    watched.assert_harmless(count)
