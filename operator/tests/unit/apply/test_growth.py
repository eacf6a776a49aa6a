"""Claims that grow under Pods that go on."""

from __future__ import annotations

import copy
import json
from typing import Any

import httpx2 as httpx
import pytest

from kvpool_operator.kube import CLAIM, DEPLOYMENT, STATEFUL_SET

from ..running import NEWER, RunningPool

NAME = "demo-engine"
NUMBER_OF_CLAIMS = 3
"""Two of Pods, and one that a third Pod left behind."""
RETENTION = "persistentVolumeClaimRetentionPolicy"
SMALL = "11328Mi"
LARGE = "22592Mi"
MINE = {"persistentVolumeClaim": {"claimName": "mine"}}


def spec(size: str = "10Gi", storage_class: str | None = "fast", **further: Any) -> dict[str, Any]:
    claim = {"storageClassName": storage_class} if storage_class else {}
    disk = {"size": size, "volume": {"persistentVolumeClaim": claim}}
    return {
        "model": {"name": "m"},
        "tiers": {"disk": disk},
        "engines": [{"replicas": 2}],
        **further,
    }


class DiskPool(RunningPool):
    """A pool whose engine has a claim in each Pod."""

    def __init__(self, wanted: dict[str, Any]) -> None:
        super().__init__(wanted)
        self.requests: list[httpx.Request] = []
        self.server.fault = self._note
        for number in range(NUMBER_OF_CLAIMS):
            owner = {"kind": "StatefulSet", "name": NAME, "uid": self.uid}
            labels = self.stateful_set["spec"]["selector"]["matchLabels"]
            name = f"kvpool-disk-{NAME}-{number}"
            metadata = {
                "namespace": "team",
                "name": name,
                "labels": labels,
                "ownerReferences": [owner],
            }
            request = {"resources": {"requests": {"storage": SMALL}}}
            status = {"phase": "Bound", "capacity": {"storage": SMALL}}
            self.server.put(CLAIM, {"metadata": metadata, "spec": request, "status": status})

    def _note(self, _: int, request: httpx.Request) -> None:
        self.requests.append(request)

    @property
    def stateful_set(self) -> dict[str, Any]:
        return self.server.get(STATEFUL_SET, "team", NAME)

    @property
    def uid(self) -> str:
        return str(self.stateful_set["metadata"]["uid"])

    def claims(self) -> list[dict[str, Any]]:
        names = [f"kvpool-disk-{NAME}-{number}" for number in range(NUMBER_OF_CLAIMS)]
        return [self.server.get(CLAIM, "team", name) for name in names]

    def owners(self) -> list[list[Any]]:
        return [claim["metadata"]["ownerReferences"] for claim in self.claims()]

    def sizes(self) -> set[str]:
        return {claim["spec"]["resources"]["requests"]["storage"] for claim in self.claims()}

    def finish_growing(self, *, by_restart: bool = False) -> None:
        """Do what a driver does with claims that ask for more."""
        for claim in self.claims():
            if by_restart:
                pending = {"type": "FileSystemResizePending", "status": "True"}
                claim["status"]["conditions"] = [pending]
            else:
                claim["status"]["capacity"] = {"storage": LARGE}

    def deletions(self) -> list[dict[str, Any]]:
        deletions = (request for request in self.requests if request.method == "DELETE")
        return [json.loads(request.content) for request in deletions]

    def template_size(self) -> str:
        (template,) = self.stateful_set["spec"]["volumeClaimTemplates"]
        return str(template["spec"]["resources"]["requests"]["storage"])


@pytest.mark.parametrize("by_restart", [False, True], ids=["online", "at the next start"])
def test_a_larger_tier_grows_all_claims_and_ends_no_pod(by_restart: bool) -> None:
    pool = DiskPool(spec())
    uid = pool.uid
    before = copy.deepcopy(pool.template(NAME, kind=STATEFUL_SET))
    pool.edit(spec("20Gi"))
    pool.reconcile(3)
    assert pool.sizes() == {LARGE}
    assert pool.uid == uid
    assert pool.template(NAME, kind=STATEFUL_SET) == before
    assert pool.waiting == {f"StatefulSet {NAME}": ("SpecChanged", "ClaimsGrown")}
    assert pool.stateful_set["spec"][RETENTION]["whenDeleted"] == "Retain"
    pool.finish_growing(by_restart=by_restart)
    pool.reconcile()
    assert pool.deletions() == []
    assert pool.owners() == [[]] * NUMBER_OF_CLAIMS
    pool.reconcile()
    assert [deletion["propagationPolicy"] for deletion in pool.deletions()] == ["Orphan"]
    pool.upgrade()
    assert pool.template_size() == LARGE
    assert pool.template(NAME, kind=STATEFUL_SET) != before
    assert pool.stateful_set["spec"][RETENTION]["whenDeleted"] == "Delete"
    assert pool.waiting == {}
    assert len(pool.deletions()) == 1


def test_a_controller_that_is_behind_is_waited_for() -> None:
    """It would make the claims dependents of the StatefulSet again, and they would end with it."""
    pool = DiskPool(spec())
    pool.edit(spec("20Gi"))
    pool.reconcile(2)
    pool.finish_growing()
    pool.stateful_set["status"]["observedGeneration"] = 0
    pool.upgrade()
    pool.upgrade()
    assert pool.deletions() == []
    assert [] not in pool.owners()
    pool.stateful_set["status"]["observedGeneration"] = pool.stateful_set["metadata"]["generation"]
    pool.upgrade()
    pool.reconcile()
    assert len(pool.deletions()) == 1


@pytest.mark.parametrize("refused", [0, 2], ids=["the first", "the last"])
def test_a_claim_that_cannot_grow_leaves_all_as_they_are(refused: int) -> None:
    """Its class does not allow it, or a quota does not."""
    pool = DiskPool(spec())
    before = copy.deepcopy(pool.stateful_set["spec"])
    name = f"kvpool-disk-{NAME}-{refused}"
    answer = {"kind": "Status", "code": 403, "message": f"{name} is forbidden: canary"}

    def refuse(_: int, request: httpx.Request) -> httpx.Response | None:
        is_growth = request.method == "PATCH" and request.url.path.endswith(name)
        return httpx.Response(403, json=answer) if is_growth else None

    pool.server.fault = refuse
    pool.edit(spec("20Gi"))
    pool.reconcile(3)
    assert pool.sizes() == {SMALL}
    assert pool.stateful_set["spec"] == before
    assert pool.waiting == {f"StatefulSet {NAME}": ("SpecChanged", "ClaimsPossible")}
    truth, reason, message = pool.condition("UpToDate")
    assert (truth, reason) == ("False", "ClaimCannotGrow")
    assert f"claim {name} cannot grow: {name} is forbidden: canary" in message
    assert "set spec.tiers.disk.size back" in message


def test_a_smaller_tier_is_refused() -> None:
    pool = DiskPool(spec())
    before = copy.deepcopy(pool.stateful_set["spec"])
    pool.edit(spec("5Gi"))
    pool.reconcile(2)
    assert pool.stateful_set["spec"] == before
    assert pool.sizes() == {SMALL}
    truth, reason, message = pool.condition("UpToDate")
    assert (truth, reason) == ("False", "ClaimCannotShrink")
    assert f"a claim cannot shrink from {SMALL} to 5696Mi" in message
    assert "raise spec.tiers.disk.size again" in message


@pytest.mark.parametrize(
    "other",
    [
        spec(storage_class="slow"),
        {**spec(), "tiers": {"disk": {"size": "10Gi", "volume": MINE}}},
    ],
    ids=["class", "the user's own claim"],
)
def test_other_claims_are_refused(other: dict[str, Any]) -> None:
    pool = DiskPool(spec())
    before = copy.deepcopy(pool.stateful_set["spec"])
    pool.edit(other)
    pool.reconcile(2)
    assert pool.stateful_set["spec"] == before
    assert pool.condition("UpToDate")[:2] == ("False", "ClaimCannotChange")
    assert "add an engine of another name to spec.engines" in pool.condition("UpToDate")[2]


def test_replicas_follow_the_spec_although_claims_cannot() -> None:
    pool = DiskPool(spec())
    pool.edit(spec("5Gi", engines=[{"replicas": 3}]))
    pool.reconcile()
    assert pool.stateful_set["spec"]["replicas"] == 3


def test_a_size_that_an_upgrade_brings_waits() -> None:
    """Here the operator's own spare room is another one, as it might be in another release."""
    pool = DiskPool(spec())
    stateful_set = pool.stateful_set
    (template,) = stateful_set["spec"]["volumeClaimTemplates"]
    template["spec"]["resources"]["requests"]["storage"] = "11000Mi"
    pool.upgrade(**NEWER)
    assert pool.waiting == {f"StatefulSet {NAME}": ("NewImage", "Asked")}
    assert not [request for request in pool.requests if CLAIM.plural in request.url.path]


def test_an_edit_that_is_taken_back_leaves_the_claims_to_their_pods_again() -> None:
    pool = DiskPool(spec())
    pool.edit(spec("20Gi"))
    pool.reconcile()
    pool.finish_growing()
    pool.reconcile()
    pool.edit(spec())
    pool.upgrade()
    assert pool.stateful_set["spec"][RETENTION]["whenDeleted"] == "Delete"
    assert pool.waiting == {}
    assert pool.sizes() == {LARGE}


def test_claims_of_an_engine_that_changes_its_kind_are_not_removed() -> None:
    """What is in them is nowhere else."""
    pool = DiskPool(spec())
    pool.edit({**spec(), "tiers": {"disk": {"size": "10Gi"}}})
    pool.reconcile(3)
    pool.upgrade()
    assert pool.exists(NAME, kind=DEPLOYMENT)
    assert not pool.exists(NAME)
    assert pool.owners() == [[]] * NUMBER_OF_CLAIMS


def test_a_workload_whose_field_is_frozen_is_never_made_again() -> None:
    pool = DiskPool(spec())
    frozen = "updates to statefulset spec for fields other than: immutable"
    answer = {"kind": "Status", "code": 422, "message": frozen}

    def refuse(_: int, request: httpx.Request) -> httpx.Response | None:
        pool.requests.append(request)
        is_write = request.method == "PATCH" and request.url.path.endswith(f"statefulsets/{NAME}")
        return httpx.Response(422, json=answer) if is_write else None

    pool.server.fault = refuse
    pool.edit(spec(engines=[{"replicas": 3}]))
    pool.reconcile()
    assert pool.deletions() == []
    assert pool.condition("EnginesReady")[:2] == ("False", "ApplyRefused")
