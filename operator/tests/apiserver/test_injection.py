"""The API server calls the webhook over TLS, and users' Pods are what they are afterwards."""

from __future__ import annotations

import json

import pytest

from .conftest import POOL, Operator
from .injection import annotations_of, calls, create, is_injected, pod, pod_spec
from .kubectl import Kubectl, eventually


def test_a_pod_gets_the_cache(pool: Kubectl) -> None:
    create(pool, pod("one"))
    body = pool.must_get("pod", "one")
    (container,) = body["spec"]["containers"]
    assert (container["command"], container["args"]) == (["vllm", "serve", "m"], ["--port", "8000"])
    variables = {one["name"]: one.get("value") for one in container["env"]}
    assert variables["KVPOOL_CONFIG_FILE"] == "/etc/kvpool/kvpool.yaml"
    assert (variables["KVPOOL_CONFLICT_POLICY"], variables["KVPOOL_ON_FAILURE"]) == ("Skip", "continue")
    assert variables["PYTHONPATH"] == "/opt/kvpool-payload"
    assert [one["name"] for one in body["spec"]["initContainers"]] == ["kvpool-payload"]
    assert container["resources"] == {"requests": {"memory": "9Gi"}, "limits": {"memory": "9Gi"}}
    config_hash = pool.must_get("kvcachepool", "demo")["status"]["config"]["hash"]
    assert annotations_of(pool, "one")["kvpool.dev/injected"] == f"{pool.namespace}/demo@{config_hash}"
    for volume in body["spec"]["volumes"]:
        for kind, source, key in (("configmap", "configMap", "name"), ("secret", "secret", "secretName")):
            if source in volume:
                pool.must_get(kind, volume[source][key])
    pool.await_condition("demo", "InjectionReady", reason="Written")
    status = pool.must_get("kvcachepool", "demo")["status"]
    assert status["consumerCount"] == 1
    assert status["consumers"] == [
        {
            "namespace": pool.namespace,
            "pod": "one",
            "workload": "Pod one",
            "state": "Written",
            "reason": "changed at its creation; its container was not seen ready yet",
        },
    ]


def test_a_state_tells_what_was_seen_of_the_container(pool: Kubectl) -> None:
    create(pool, pod("one"))
    pool.await_condition("demo", "InjectionReady", reason="Written")
    ended = {"terminated": {"reason": "Error", "exitCode": 1}}
    waiting = {"waiting": {"reason": "CrashLoopBackOff"}}
    for reason, state, last, ready in (
        ("Injected", {"running": {}}, {}, True),
        ("PodsFailing", waiting, ended, False),
    ):
        main = {"name": "main", "image": "x", "imageID": "x", "restartCount": 0, "ready": ready}
        status = {"containerStatuses": [{**main, "state": state, "lastState": last}]}
        patch = json.dumps({"status": status})
        pool("patch", "pod", "one", "--subresource=status", "--type=merge", "-p", patch)
        found = pool.await_condition("demo", "InjectionReady", reason=reason)
    assert found["status"] == "False"
    assert f"{pool.namespace}/one: container main ended: Error, exit code 1" in found["message"]
    assert "remove the annotation kvpool.dev/pool" in found["message"]


def test_pods_of_a_deployment_and_its_template_stays_as_it_was(pool: Kubectl) -> None:
    template = {
        "metadata": {"labels": {"app": "x"}, "annotations": {"kvpool.dev/pool": "demo"}},
        "spec": pod_spec(),
    }
    spec = {"replicas": 2, "selector": {"matchLabels": {"app": "x"}}, "template": template}
    create(pool, {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"}, "spec": spec})
    pods = eventually(lambda: len(found := pool.list("pods", "-l", "app=x")) == 2 and found, what="Pods")
    assert pods
    assert all(is_injected(one) for one in pods)
    live = pool.must_get("deployment", "x")["spec"]["template"]
    assert live["spec"]["containers"][0]["args"] == ["--port", "8000"]
    assert "volumes" not in live["spec"]
    eventually(lambda: len(pool.list("replicasets", "-l", "app=x")) == 1, what="no second ReplicaSet")


def test_an_annotation_that_leads_elsewhere(pool: Kubectl, operator: Operator) -> None:
    """It means no pool, and the Pod says so. It once made the operator list all Secrets."""
    create(pool, pod("astray", pool="x/../../../../api/v1/secrets"))
    body = pool.must_get("pod", "astray")
    assert annotations_of(pool, "astray")["kvpool.dev/skip-reason"].startswith("BadReference: ")
    assert body["spec"]["containers"][0]["args"] == ["--port", "8000"]
    create(pool, pod("two"))
    pool.await_condition("demo", "InjectionReady", reason="Written")
    assert "Traceback" not in operator.log


def test_a_pod_without_a_sign_of_kvpool_is_not_even_sent(pool: Kubectl, operator: Operator) -> None:
    """The counter is the whole cluster's: a Pod of an earlier test may come in between, but not in between all of these."""

    def sent(name: str, **names: str) -> bool:
        before = calls(operator)
        create(pool, pod(name, **names))
        return calls(operator) > before

    assert not all(sent(f"plain-{number}", pool="") for number in range(5))
    assert sent("other")


def test_a_new_configuration_shows_who_is_outdated(pool: Kubectl) -> None:
    create(pool, pod("one"))
    pool.await_condition("demo", "InjectionReady", reason="Written")
    pool.apply_pool("demo", {**POOL, "connector": {"ttlSeconds": 60}})
    found = pool.await_condition("demo", "InjectionReady", reason="PodsOutdated")
    assert found["status"] == "True"
    assert f"{pool.namespace}/one" in found["message"]


def test_a_pool_that_is_missing_and_then_appears(kubectl: Kubectl) -> None:
    warning = create(kubectl, pod("early"))
    assert "there is no KVCachePool demo" in warning
    assert annotations_of(kubectl, "early")["kvpool.dev/skip-reason"].startswith("PoolMissing: ")
    assert kubectl.must_get("pod", "early")["spec"]["containers"][0]["args"] == ["--port", "8000"]
    kubectl.apply_pool("demo", POOL)
    found = kubectl.await_condition("demo", "InjectionReady", reason="PodsSkipped")
    assert f"{kubectl.namespace}/early: started before the pool was there: restart the Pod" in found["message"]
    kubectl("delete", "pod", "early", "--force", "--grace-period=0")
    create(kubectl, pod("early"))
    assert is_injected(kubectl.must_get("pod", "early"))
    kubectl.await_condition("demo", "InjectionReady", reason="Written")


def test_a_pool_and_its_pod_applied_together(kubectl: Kubectl) -> None:
    """The webhook waits for what the pool's Pods mount, though not for long: a busy machine has several tries. None would do
    without the wait, since a pool's children take longer than kubectl from one object to the next."""

    def together(name: str) -> bool:
        head = {"apiVersion": "kvpool.dev/v1alpha1", "kind": "KVCachePool", "metadata": {"name": name}}
        both = "\n---\n".join(json.dumps(one) for one in (head | {"spec": POOL}, pod(name, pool=name)))
        kubectl("apply", "-f", "-", text=both)
        return is_injected(kubectl.must_get("pod", name))

    assert any(together(f"try-{number}") for number in range(5)), annotations_of(kubectl, "try-0")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"kvpool.dev/container": "other"}, "NoVLLM"),
        ({"kvpool.dev/pool": "no/such/pool"}, "BadReference"),
        ({"kvpool.dev/pool": "absent"}, "PoolMissing"),
    ],
    ids=["another container", "no reference", "no pool"],
)
def test_a_pod_that_can_not_be_changed_starts_with_the_reason(
    pool: Kubectl, fields: dict[str, str], reason: str
) -> None:
    create(pool, pod("one", annotations={"kvpool.dev/pool": "demo", **fields}))
    assert annotations_of(pool, "one")["kvpool.dev/skip-reason"].startswith(f"{reason}: ")
    assert "env" not in pool.must_get("pod", "one")["spec"]["containers"][0]


def test_a_skipped_pod_is_in_the_status(pool: Kubectl) -> None:
    create(pool, pod("one", annotations={"kvpool.dev/pool": "demo", "kvpool.dev/container": "other"}))
    pool.await_condition("demo", "InjectionReady", reason="PodsSkipped")
    assert pool.must_get("kvcachepool", "demo")["status"]["consumers"][0]["state"] == "Skipped"


def test_a_replaced_seed_is_a_warning_on_the_pod_and_in_the_status(pool: Kubectl) -> None:
    own = [{"name": "PYTHONHASHSEED", "value": "123"}]
    warning = create(pool, {**pod("one"), "spec": pod_spec(env=own)})
    assert "Warning: kvpool: PYTHONHASHSEED=123 is replaced by the pool's" in warning
    text = annotations_of(pool, "one")["kvpool.dev/warning"]
    assert text in warning
    pool.await_condition("demo", "InjectionReady", reason="Written")
    (consumer,) = pool.must_get("kvcachepool", "demo")["status"]["consumers"]
    assert consumer["reason"].endswith(text)


def test_an_engine_of_the_policy_fail_is_told_so(kubectl: Kubectl) -> None:
    """It refuses to start by itself: only it knows whether it has another connector."""
    kubectl.apply_pool("demo", {**POOL, "injection": {"conflictPolicy": "Fail"}})
    kubectl.await_condition("demo", "ConfigRendered", reason="Rendered")
    taken = {"args": ["--kv-transfer-config", '{"kv_connector":"NixlConnector"}']}
    create(kubectl, {**pod("one"), "spec": pod_spec(**taken)})
    (container,) = kubectl.must_get("pod", "one")["spec"]["containers"]
    assert container["args"] == taken["args"]
    assert {"name": "KVPOOL_CONFLICT_POLICY", "value": "Fail"} in container["env"]


def test_a_pool_of_before_keeps_its_delivery(kubectl: Kubectl) -> None:
    kubectl.apply_pool("demo", {**POOL, "injection": {"delivery": "Image"}})
    kubectl.await_condition("demo", "ConfigRendered", reason="Rendered")
    create(kubectl, pod("one"))
    body = kubectl.must_get("pod", "one")
    assert is_injected(body)
    assert "initContainers" not in body["spec"]


def test_off_is_off(kubectl: Kubectl) -> None:
    kubectl.apply_pool("demo", {**POOL, "injection": {"mode": "Off"}})
    kubectl.await_condition("demo", "InjectionReady", reason="InjectionOff")
    create(kubectl, pod("one"))
    assert annotations_of(kubectl, "one")["kvpool.dev/skip-reason"].startswith("InjectionOff: ")


def test_a_pod_of_900_kb(pool: Kubectl) -> None:
    create(pool, {**pod("big"), "spec": pod_spec(env=[{"name": f"V{n}", "value": "x" * 1000} for n in range(900)])})
    assert is_injected(pool.must_get("pod", "big"))
