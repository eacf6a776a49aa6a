"""What restarts Pods that run, and what waits."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kvpool_operator.apply import specs
from kvpool_operator.desired import Manifest, Pool, desired
from kvpool_operator.desired.names import ROLLOUT_ANNOTATION
from kvpool_operator.kube import CONFIG_MAP, DEPLOYMENT, POOL, STATEFUL_SET

from ..running import NEWER, SPEC, RunningPool

ENGINE = "Deployment demo-engine"
STORE = "Deployment demo-store"
OLD_IMAGE = "kvpool/serving:0.1.0"
NEW_IMAGE = "kvpool/serving:newer"
EDIT = {**SPEC, "tiers": {"cpu": {"size": "2Gi"}}}
TWO = {**SPEC, "engines": [{"name": "a"}, {"name": "b"}]}


def under(policy: str, spec: dict[str, Any] = SPEC) -> dict[str, Any]:
    return {**spec, "rollout": {"policy": policy}}


def test_an_upgrade_restarts_nothing() -> None:
    pool = RunningPool(SPEC)
    before = pool.template("demo-engine"), pool.template("demo-store")
    pool.upgrade(**NEWER)
    assert (pool.template("demo-engine"), pool.template("demo-store")) == before
    assert pool.waiting == {ENGINE: ("NewImage", "Asked"), STORE: ("NewImage", "Asked")}
    truth, reason, message = pool.condition("UpToDate")
    assert (truth, reason) == ("False", "RolloutPending")
    assert "kubectl annotate kvcachepool demo --overwrite kvpool.dev/rollout-now" in message
    assert pool.condition("Ready")[:2] == ("True", "AllReady")


def test_a_pool_of_the_release_before_is_not_restarted() -> None:
    """Its workloads have no record, and mount what this release no longer writes for engines."""
    pool = RunningPool(SPEC)
    for name in ("demo-engine", "demo-store"):
        annotations = pool.server.get(DEPLOYMENT, "team", name)["metadata"]["annotations"]
        del annotations[ROLLOUT_ANNOTATION]
    config = {"name": "config", "configMap": {"name": "demo-connector"}}
    pool.change("demo-engine", {"spec": {"template": {"spec": {"volumes": [config]}}}})
    text = {"data": {"kvpool.yaml": "of the release before"}}
    pool.server.objects[CONFIG_MAP.object_path("team", "demo-connector")] |= text
    before = pool.template("demo-engine")
    pool.upgrade()
    pool.reconcile()
    assert pool.template("demo-engine") == before
    assert pool.waiting == {ENGINE: ("NewPodTemplate", "Asked")}
    assert pool.server.get(CONFIG_MAP, "team", "demo-connector")["data"] == text["data"]
    pool.ask("1")
    pool.reconcile()
    assert pool.template("demo-engine") != before
    assert pool.waiting == {}
    pool.reconcile()
    assert "tiers" in pool.server.get(CONFIG_MAP, "team", "demo-connector")["data"]["kvpool.yaml"]


def test_an_edit_of_the_spec_is_rolled_out_with_all_that_waits() -> None:
    pool = RunningPool(SPEC)
    pool.upgrade(**NEWER)
    pool.edit(EDIT)
    pool.reconcile()
    assert pool.image("demo-engine") == NEW_IMAGE
    assert pool.waiting == {STORE: ("NewImage", "Asked")}


def test_an_edit_that_changes_no_pod_takes_nothing_along() -> None:
    pool = RunningPool(SPEC)
    pool.upgrade(**NEWER)
    pool.edit({**SPEC, "engines": [{"replicas": 5}]})
    pool.reconcile()
    assert pool.server.get(DEPLOYMENT, "team", "demo-engine")["spec"]["replicas"] == 5
    assert pool.image("demo-engine") == OLD_IMAGE


def test_an_edit_while_the_operator_is_upgraded_takes_nothing_along() -> None:
    pool = RunningPool(SPEC)
    pool.edit({**SPEC, "engines": [{"replicas": 5}]})
    pool.upgrade(**NEWER)
    assert pool.image("demo-engine") == OLD_IMAGE


def test_an_edit_that_changes_no_pod_is_noted() -> None:
    """A later release may make something of the field: that would be no edit any more."""
    pool = RunningPool(SPEC)
    model = {"name": "m", "servedName": "m"}
    pool.edit({**SPEC, "model": model})
    pool.reconcile()
    annotations = pool.server.get(DEPLOYMENT, "team", "demo-engine")["metadata"]["annotations"]
    assert json.loads(annotations[ROLLOUT_ANNOTATION])["spec"]["model"] == model


def test_asking_rolls_out_what_waits_once() -> None:
    pool = RunningPool(SPEC)
    pool.upgrade(**NEWER)
    pool.ask("today")
    pool.reconcile()
    assert (pool.image("demo-engine"), pool.image("demo-store")) == (NEW_IMAGE, "redis:newer")
    assert pool.waiting == {}
    pool.upgrade(images={"engine": "kvpool/serving:newest"})
    assert pool.image("demo-engine") == NEW_IMAGE


def test_asking_with_nothing_to_do_is_not_kept_for_later() -> None:
    pool = RunningPool(SPEC)
    pool.ask("today")
    pool.reconcile()
    pool.upgrade(**NEWER)
    assert pool.image("demo-engine") == OLD_IMAGE


def test_a_restart_brings_what_waits_to_that_workload() -> None:
    pool = RunningPool(SPEC)
    pool.upgrade(**NEWER)
    pool.restart("demo-engine", "2030-01-01T00:00:00Z")
    pool.reconcile()
    assert pool.image("demo-engine") == NEW_IMAGE
    assert pool.waiting == {STORE: ("NewImage", "Asked")}


def test_a_restart_of_before_is_no_reason() -> None:
    pool = RunningPool(SPEC)
    pool.restart("demo-engine", "2030-01-01T00:00:00Z")
    pool.reconcile()
    pool.restart("demo-engine", "2030-01-01T00:00:00Z")
    pool.upgrade(**NEWER)
    assert pool.image("demo-engine") == OLD_IMAGE


def test_immediate_rolls_out_an_upgrade() -> None:
    pool = RunningPool(under("Immediate"))
    pool.upgrade(**NEWER)
    assert (pool.image("demo-engine"), pool.image("demo-store")) == (NEW_IMAGE, "redis:newer")


@pytest.mark.parametrize("reason", ["an edit", "a question", "a restart", "an upgrade"])
def test_paused_rolls_out_nothing(reason: str) -> None:
    pool = RunningPool(under("Paused"))
    images = pool.image("demo-engine"), pool.image("demo-store")
    config = pool.server.get(CONFIG_MAP, "team", "demo-store")["data"]
    pool.upgrade(**NEWER)
    if reason == "an edit":
        pool.edit(under("Paused", {**EDIT, "backend": {"type": "Redis", "memory": "4Gi"}}))
    elif reason == "a question":
        pool.ask("today")
    elif reason == "a restart":
        pool.restart("demo-engine", "2030-01-01T00:00:00Z")
    pool.reconcile()
    assert (pool.image("demo-engine"), pool.image("demo-store")) == images
    assert pool.server.get(CONFIG_MAP, "team", "demo-store")["data"] == config
    word = "SpecChanged" if reason == "an edit" else "NewImage"
    assert pool.waiting == {ENGINE: (word, "PolicyChanged"), STORE: (word, "PolicyChanged")}


def test_an_edit_under_paused_is_rolled_out_afterwards() -> None:
    pool = RunningPool(under("Paused"))
    pool.edit(under("Paused", EDIT))
    pool.reconcile(2)
    before = pool.template("demo-engine")
    pool.edit(under("OnNextRestart", EDIT))
    pool.reconcile()
    assert pool.template("demo-engine") != before
    assert pool.waiting == {}


def test_a_restart_under_paused_is_over_afterwards() -> None:
    pool = RunningPool(under("Paused"))
    pool.upgrade(**NEWER)
    pool.restart("demo-engine", "2030-01-01T00:00:00Z")
    pool.reconcile()
    pool.edit(under("OnNextRestart"))
    pool.reconcile()
    assert pool.image("demo-engine") == OLD_IMAGE


def test_engines_roll_one_after_the_other() -> None:
    pool = RunningPool(TWO)
    pool.upgrade(**NEWER)
    pool.ask("today")
    pool.reconcile()
    pool.has_ready("demo-a", 0)
    assert (pool.image("demo-a"), pool.image("demo-b")) == (NEW_IMAGE, OLD_IMAGE)
    assert pool.waiting == {"Deployment demo-b": ("NewImage", "OthersReady")}
    pool.upgrade(**NEWER)
    assert pool.image("demo-b") == OLD_IMAGE
    pool.has_ready("demo-a", 1)
    pool.upgrade(**NEWER)
    assert pool.image("demo-b") == NEW_IMAGE
    assert pool.waiting == {}


def test_an_engine_without_a_ready_pod_need_not_wait_for_others() -> None:
    pool = RunningPool(TWO)
    pool.has_ready("demo-a", 0)
    pool.has_ready("demo-b", 0)
    pool.upgrade(**NEWER)
    pool.ask("today")
    pool.has_ready("demo-b", 0)
    pool.has_ready("demo-a", 0)
    pool.reconcile()
    assert (pool.image("demo-a"), pool.image("demo-b")) == (NEW_IMAGE, NEW_IMAGE)


def test_a_workload_without_pods_gets_its_template_at_once() -> None:
    pool = RunningPool({**SPEC, "engines": [{"replicas": 0}]})
    pool.upgrade(**NEWER)
    assert pool.image("demo-engine") == NEW_IMAGE


def test_a_template_edited_by_hand_is_put_back() -> None:
    pool = RunningPool(SPEC)
    before = pool.template("demo-engine")
    pool.change("demo-engine", {"spec": {"template": {"spec": {"priority": 5, "containers": []}}}})
    pool.upgrade()
    assert pool.template("demo-engine") == before


def test_what_waits_is_told_once() -> None:
    pool = RunningPool(SPEC)
    pool.upgrade(**NEWER)
    pool.restart("demo-engine", "2030-01-01T00:00:00Z")
    pool.upgrade(**NEWER)
    assert pool.waiting.keys() == {STORE}
    events = pool.events()
    assert [event["reason"] for event in events] == ["RolloutPending"]
    assert f"{STORE} waits for another image until somebody asks for it" in events[0]["note"]


def test_nothing_is_written_while_something_waits() -> None:
    pool = RunningPool(SPEC)
    pool.upgrade(**NEWER)
    pool.server.calls.clear()
    pool.reconcile(3)
    assert {method for method, _ in pool.server.calls} == {"GET"}


CLAIMED = {**SPEC, "tiers": {"disk": {"size": "10Gi", "volume": {"persistentVolumeClaim": {}}}}}


def test_a_workload_of_another_kind_is_ready_before_the_old_one_goes() -> None:
    pool = RunningPool(SPEC)
    pool.edit(CLAIMED)
    pool.reconcile()
    assert pool.exists("demo-engine", kind=STATEFUL_SET)
    assert pool.exists("demo-engine", kind=DEPLOYMENT)
    assert pool.waiting == {ENGINE: ("NewKind", "ReplacementReady")}
    pool.has_ready("demo-engine", 1, kind=STATEFUL_SET)
    pool.upgrade()
    assert pool.exists("demo-engine", kind=DEPLOYMENT)
    pool.has_ready("demo-engine", 2, kind=STATEFUL_SET)
    pool.upgrade()
    assert not pool.exists("demo-engine", kind=DEPLOYMENT)
    assert pool.waiting == {}


def test_a_workload_of_another_kind_takes_over_at_once_when_asked() -> None:
    pool = RunningPool(SPEC)
    pool.edit(CLAIMED)
    pool.reconcile()
    pool.has_ready("demo-engine", 0, kind=STATEFUL_SET)
    pool.upgrade()
    assert pool.exists("demo-engine", kind=DEPLOYMENT)
    pool.ask("now")
    pool.reconcile()
    assert not pool.exists("demo-engine", kind=DEPLOYMENT)


def test_a_workload_of_another_kind_is_not_made_under_paused() -> None:
    pool = RunningPool(under("Paused"))
    pool.edit(under("Paused", CLAIMED))
    pool.reconcile()
    assert not pool.exists("demo-engine", kind=STATEFUL_SET)
    assert pool.exists("demo-engine", kind=DEPLOYMENT)
    assert pool.waiting == {ENGINE: ("NewKind", "PolicyChanged")}


def test_a_spec_too_large_for_a_record_waits() -> None:
    template = {"metadata": {"annotations": {"text": "x" * 70_000}}}
    pool = RunningPool({**SPEC, "engines": [{"podTemplate": template}]})
    before = pool.template("demo-engine")
    pool.edit({**EDIT, "engines": [{"podTemplate": template}]})
    pool.reconcile()
    assert pool.template("demo-engine") == before
    assert pool.waiting == {ENGINE: ("NewConfiguration", "Asked")}
    assert pool.server.get(POOL, "team", "demo")["status"]["rollout"]


def test_what_a_former_spec_led_to_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool of 16 engines kept the event loop for so many renderings of all its objects."""
    engines = [{"name": f"e{number}"} for number in range(8)]
    pool = RunningPool({**SPEC, "engines": engines})
    calls: list[Pool] = []

    def counted(of: Pool) -> list[Manifest]:
        calls.append(of)
        return desired(of)

    monkeypatch.setattr(specs, "desired", counted)
    pool.edit({**EDIT, "engines": engines})
    pool.reconcile()
    assert len(calls) == 1
