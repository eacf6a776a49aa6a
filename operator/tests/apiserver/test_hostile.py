"""Hostile and mutated pools and Pods against the real API server and the operator, which acts as its own account."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from typing import Any

import pytest

from kvpool_operator.kube import POD, POOL, Client, NotFound, Refused, connect
from testkit.patience import PATIENCE_S
from testkit.permissions import uses_of

from . import hostile
from .conftest import POOL as POOL_SPEC
from .conftest import SYSTEM, AuditLog, Operator
from .injection import pod, pod_spec
from .kubectl import Kubectl

_log = logging.getLogger(__name__)
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
        except Refused as error:
            self.refused += 1
            if "spec" not in error.message and "json" not in error.message.lower():
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
FOREIGN = ("kube-system", "kube-public", "kube-node-lease", "default")
"""Namespaces in which no test has a pool."""
LONGEST_TURN_S = {SAMPLE: 0.2, ALL: 0.05}
"""Of the operator's event loop, in CPU time: the goal for all of them, and more for the sample, since hosts differ."""


class Watched:
    """What the operator did and said in the test."""

    def __init__(self, operator: Operator, audit_log: AuditLog) -> None:
        self._operator = operator
        self._audit_log = audit_log
        self._log_start = len(operator.log)
        self._audit_start = len(audit_log.lines())
        _log.info("the longest turn of the event loop before: %.3f s", self._longest_turn_s())

    def assert_harmless(self, count: int) -> None:
        """No exception; no request into a namespace of others, but to see whether it takes a pool."""
        said = self._operator.log[self._log_start :]
        assert "Traceback" not in said
        assert "a fault of the operator" not in said
        uses = uses_of((SYSTEM, "kvpool-operator"), self._audit_log.lines()[self._audit_start :])
        assert uses
        assert [use for use in uses if use.namespace in FOREIGN and use.resource != "namespaces"] == []
        longest_s = self._longest_turn_s()
        _log.info("the longest turn of the event loop: %.3f s", longest_s)
        assert longest_s < LONGEST_TURN_S[count]

    def _longest_turn_s(self) -> float:
        """Return the longest one since this was asked last."""
        name = "kvpool_operator_longest_turn_seconds "
        (turn,) = [line for line in self._operator.metrics() if line.startswith(name)]
        return float(turn.removeprefix(name))


@pytest.fixture
def watched(operator: Operator, audit_log: AuditLog) -> Watched:
    return Watched(operator, audit_log)


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
    """Each is let in, with the cache or with a reason, or refused by the API server itself."""
    # Of the policies, Multi looks closest at what is there: it copies and writes it.
    kubectl.apply_pool("demo", {**POOL_SPEC, "injection": {"conflictPolicy": "Multi"}})
    kubectl.await_condition("demo", "ConfigRendered", reason="Rendered")

    async def attack() -> list[str]:
        client = connect()
        faults: list[str] = []
        try:
            for number, (annotations, container) in enumerate(hostile.pods(count, SEED)):
                body = pod(f"p{number}", annotations=annotations)
                body["spec"] = pod_spec(**container)
                body["metadata"]["namespace"] = kubectl.namespace
                try:
                    made = await client.create(POD, body)
                except Refused:
                    continue
                marks = made["metadata"]["annotations"]
                if annotations["kvpool.dev/pool"].strip() and not marks.keys() & {
                    "kvpool.dev/injected",
                    "kvpool.dev/skip-reason",
                }:
                    faults.append(f"{annotations}: {marks}")
                await client.delete(POD, kubectl.namespace, body["metadata"]["name"], uid=made["metadata"]["uid"])
        finally:
            await client.close()
        return faults

    assert asyncio.run(attack()) == []
    watched.assert_harmless(count)
