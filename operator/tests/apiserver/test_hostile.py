"""Hostile and mutated pools against the real API server and the operator: each is refused with a path, or has a condition."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from typing import Any

import pytest

from kvpool_operator.kube import POOL, Client, NotFound, Refused, connect
from testkit.patience import PATIENCE_S

from . import hostile
from .conftest import Operator
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


@pytest.mark.parametrize(
    "count", [pytest.param(SAMPLE, id="a sample"), pytest.param(ALL, marks=pytest.mark.slow, id="all")]
)
@pytest.mark.timeout(40 * PATIENCE_S, func_only=True)
def test_hostile_pools(kubectl: Kubectl, operator: Operator, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """No exception in the operator, and nothing without an answer that names the field or the condition."""
    seed = int(os.environ.get("KVPOOL_HOSTILE_SEED", "14"))
    before = len(operator.log)
    monkeypatch.setenv("KUBECONFIG", kubectl.environment["KUBECONFIG"])

    async def attack() -> Attack:
        client = connect()
        try:
            found = Attack(client, kubectl.namespace)
            await found.run(list(hostile.pools(count, seed)))
            return found
        finally:
            await client.close()

    found = asyncio.run(attack())
    _log.info("seed %d: %d refused, %d with a status, faults: %s", seed, found.refused, found.reported, found.faults)
    assert found.faults == []
    assert found.refused + found.reported == count
    assert found.refused > count / 4
    assert found.reported > count / 20
    log = operator.log[before:]
    assert "Traceback" not in log
    assert "a fault of the operator" not in log
