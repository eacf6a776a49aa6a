"""A pool on the stand-in API server, and the operator as one release after the other."""

from __future__ import annotations

import asyncio
from typing import Any

from kvpool_operator.api import Settings
from kvpool_operator.api.rollout import ROLLOUT_NOW
from kvpool_operator.kube import DEPLOYMENT, POOL, STATEFUL_SET, Resource
from kvpool_operator.observe.cache import Cache
from kvpool_operator.reconcile import Reconciler
from kvpool_operator.status.observed import Consumer

from .fake_api import ApiServer, merged

SPEC: dict[str, Any] = {
    "model": {"name": "m"},
    "backend": {"type": "Redis"},
    "tiers": {"cpu": {"size": "1Gi"}},
    "engines": [{"replicas": 2}],
}
NEWER = {"images": {"engine": "kvpool/serving:newer", "redis": "redis:newer"}}
"""Settings of a chart that brings other images."""


class RunningPool:
    """The pool ``team/demo``, whose Pods are ready as soon as they are wanted."""

    def __init__(self, spec: dict[str, Any], **settings: Any) -> None:
        self.server = ApiServer()
        self.consumers: tuple[Consumer, ...] = ()
        self._now = 0.0
        self.edit(spec)
        self.upgrade(**settings)

    def upgrade(self, **settings: Any) -> None:
        """Start an operator with these settings, which has seen nothing yet, and let it work."""
        self._reconciler = Reconciler(
            self.server.client,
            Cache(),
            Settings.model_validate(settings),
            clock=lambda: self._now,
            consumers_of=lambda _: self.consumers,
            now=lambda: "t",
        )
        self.reconcile()

    def reconcile(self, times: int = 1) -> None:
        """Let the operator look at the pool, long after the last time."""
        for _ in range(times):
            self._now += 1000.0
            asyncio.run(self._reconciler.reconcile(("team", "demo")))

    def edit(self, spec: dict[str, Any]) -> None:
        """Write another spec, as the pool's user."""
        path = POOL.object_path("team", "demo")
        annotations = self.server.objects.get(path, {}).get("metadata", {}).get("annotations", {})
        metadata = {"namespace": "team", "name": "demo", "annotations": annotations}
        self.server.put(POOL, {"metadata": metadata, "spec": spec})

    def delete(self) -> None:
        """Delete the pool, as its user."""
        del self.server.objects[POOL.object_path("team", "demo")]

    def lose_children(self) -> None:
        """Do what Kubernetes' garbage collector does once a pool is deleted."""
        for path in self.server.children():
            del self.server.objects[path]

    def events(self) -> list[dict[str, Any]]:
        """Return all Events."""
        return [body for path, body in self.server.objects.items() if "/events/" in path]

    def ask(self, value: str) -> None:
        """Ask for all that waits."""
        pool = self.server.get(POOL, "team", "demo")
        self.server.put(POOL, merged(pool, {"metadata": {"annotations": {ROLLOUT_NOW: value}}}))

    def restart(self, name: str, when: str, *, kind: Resource = DEPLOYMENT) -> None:
        """Do what ``kubectl rollout restart`` does."""
        metadata = {"annotations": {"kubectl.kubernetes.io/restartedAt": when}}
        self.change(name, {"spec": {"template": {"metadata": metadata}}}, kind=kind)

    def change(self, name: str, patch: dict[str, Any], *, kind: Resource = DEPLOYMENT) -> None:
        """Change a workload behind the operator's back."""
        self.server.put(kind, merged(self.server.get(kind, "team", name), patch))

    def scale(self, name: str, replicas: int, manager: str = "kube-controller-manager") -> None:
        """Do what an autoscaler does by the subresource ``scale``."""
        fields: dict[str, Any] = {"f:spec": {"f:replicas": {}}}
        entry = {"manager": manager, "subresource": "scale", "fieldsV1": fields}
        patch = {"metadata": {"managedFields": [entry]}, "spec": {"replicas": replicas}}
        self.change(name, patch)

    def has_ready(self, name: str, ready: int, *, kind: Resource = DEPLOYMENT) -> None:
        """Say how many Pods of a workload are ready."""
        workload = self.server.get(kind, "team", name)
        workload["status"]["readyReplicas"] = ready

    def template(self, name: str, *, kind: Resource = DEPLOYMENT) -> dict[str, Any]:
        """Return a workload's Pod template."""
        found: dict[str, Any] = self.server.get(kind, "team", name)["spec"]["template"]
        return found

    def image(self, name: str, *, kind: Resource = DEPLOYMENT) -> str:
        """Return the image of a workload's Pods."""
        return str(self.template(name, kind=kind)["spec"]["containers"][0]["image"])

    def exists(self, name: str, *, kind: Resource = STATEFUL_SET) -> bool:
        return kind.object_path("team", name) in self.server.objects

    @property
    def waiting(self) -> dict[str, tuple[str, str]]:
        """Return reason and end of the wait of each workload that waits."""
        status = self.server.get(POOL, "team", "demo")["status"]
        waiting = status.get("rollout", {}).get("waiting", ())
        return {one["workload"]: (one["reason"], one["until"]) for one in waiting}

    def condition(self, kind: str) -> tuple[str, str, str]:
        """Return status, reason and message of a condition."""
        status = self.server.get(POOL, "team", "demo")["status"]
        (found,) = (one for one in status["conditions"] if one["type"] == kind)
        return found["status"], found["reason"], found["message"]
