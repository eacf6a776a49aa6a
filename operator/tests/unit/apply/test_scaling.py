"""Engines that somebody else scales."""

from __future__ import annotations

from typing import Any

from kvpool_operator.kube import DEPLOYMENT

from ..running import NEWER, SPEC, RunningPool

OPEN = {**SPEC, "engines": [{}]}
LARGER = {"cpu": {"size": "2Gi"}}


def written_replicas(pool: RunningPool, name: str = "demo-engine") -> Any:
    """Return the replicas that were last written; None if they were left out."""
    return pool.server.get(DEPLOYMENT, "team", name)["spec"].get("replicas")


def test_replicas_of_an_autoscaler_are_left_alone() -> None:
    pool = RunningPool(OPEN)
    assert written_replicas(pool) == 1
    pool.scale("demo-engine", 7)
    pool.upgrade()
    pool.edit({**OPEN, "tiers": LARGER})
    pool.reconcile()
    assert written_replicas(pool) is None


def test_an_autoscaler_is_known_after_a_restart_of_the_operator() -> None:
    pool = RunningPool(SPEC)
    pool.scale("demo-engine", 7)
    pool.upgrade(**NEWER)
    assert written_replicas(pool) is None


def test_an_edit_of_the_pools_number_takes_replicas_back_once() -> None:
    pool = RunningPool(SPEC)
    pool.scale("demo-engine", 7)
    pool.edit({**SPEC, "engines": [{"replicas": 4}]})
    pool.upgrade()
    assert written_replicas(pool) == 4
    pool.scale("demo-engine", 8)
    pool.upgrade()
    assert written_replicas(pool) is None


def test_leaving_the_number_open_takes_nothing_back() -> None:
    pool = RunningPool(SPEC)
    pool.scale("demo-engine", 7)
    pool.edit(OPEN)
    pool.upgrade()
    assert written_replicas(pool) is None


def test_the_replicas_of_a_store_are_kvpools() -> None:
    pool = RunningPool(SPEC)
    pool.scale("demo-store", 3)
    pool.upgrade()
    assert written_replicas(pool, "demo-store") == 1
