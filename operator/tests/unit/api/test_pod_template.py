"""What a pool may set in the Pods that the operator, which has more rights than the pool's author, makes for it."""

from __future__ import annotations

from typing import Any

import pytest

from kvpool_operator.api import InvalidSpec, Settings, parse_spec
from kvpool_operator.api.pod_template import check_templates

RESTRICTED = Settings()
FULL = Settings.model_validate({"podTemplates": "Full"})
TAKEN: dict[str, Any] = {
    "metadata": {"labels": {"team": "a"}, "annotations": {"x": "y"}},
    "spec": {
        "nodeSelector": {"gpu": "yes"},
        "affinity": {"nodeAffinity": {}},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "topologySpreadConstraints": [{"topologyKey": "zone", "maxSkew": 1}],
        "priorityClassName": "high",
        "runtimeClassName": "nvidia",
        "schedulerName": "mine",
        "imagePullSecrets": [{"name": "registry"}],
        "terminationGracePeriodSeconds": 90,
        "volumes": [
            {"name": "scratch", "emptyDir": {}},
            {"name": "weights", "persistentVolumeClaim": {"claimName": "weights"}},
            {"name": "files", "configMap": {"name": "files"}},
        ],
        "containers": [
            {
                "name": "engine",
                "resources": {"limits": {"memory": "1Gi"}},
                "volumeMounts": [{"name": "weights", "mountPath": "/w"}],
            }
        ],
    },
}
REFUSED: dict[str, dict[str, Any]] = {
    "spec.hostNetwork": {"spec": {"hostNetwork": True}},
    "spec.hostPID": {"spec": {"hostPID": True}},
    "spec.serviceAccountName": {"spec": {"serviceAccountName": "kvpool-operator"}},
    "spec.automountServiceAccountToken": {"spec": {"automountServiceAccountToken": True}},
    "spec.securityContext": {"spec": {"securityContext": {"runAsUser": 0}}},
    "spec.nodeName": {"spec": {"nodeName": "node"}},
    "spec.initContainers": {"spec": {"initContainers": [{"name": "x", "image": "y"}]}},
    "spec.ephemeralContainers": {"spec": {"ephemeralContainers": []}},
    "spec.volumes[0].hostPath": {"spec": {"volumes": [{"name": "root", "hostPath": {"path": "/"}}]}},
    "spec.volumes[0].secret": {"spec": {"volumes": [{"name": "s", "secret": {"secretName": "other"}}]}},
    "spec.volumes[0].projected": {"spec": {"volumes": [{"name": "t", "projected": {"sources": []}}]}},
    "spec.volumes[1].csi": {
        "spec": {"volumes": [{"name": "a", "emptyDir": {}}, {"name": "c", "csi": {"driver": "x"}}]}
    },
    "spec.containers[0].securityContext": {
        "spec": {"containers": [{"name": "engine", "securityContext": {"privileged": True}}]}
    },
    "spec.containers[0].command": {"spec": {"containers": [{"name": "engine", "command": ["sh"]}]}},
    "spec.containers[0].lifecycle": {"spec": {"containers": [{"name": "engine", "lifecycle": {}}]}},
    "spec.containers[0].name": {"spec": {"containers": [{"name": "sidecar"}]}},
    "metadata.finalizers": {"metadata": {"finalizers": ["x"]}},
    "metadata.ownerReferences": {"metadata": {"ownerReferences": []}},
    "kind": {"kind": "Pod"},
    "spec.HostNetwork": {"spec": {"HostNetwork": True}},
}
SHAPELESS: dict[str, dict[str, Any]] = {
    "spec.containers[0].name": {"spec": {"containers": [{"name": {"a": 1}}]}},
    "spec.volumes[0].name": {"spec": {"volumes": [{"name": ["x"]}]}},
    "spec.containers[0].volumeMounts[0].mountPath": {
        "spec": {"containers": [{"name": "engine", "volumeMounts": [{"mountPath": {}}]}]}
    },
}


def check(template: dict[str, Any], settings: Settings = RESTRICTED) -> None:
    spec = parse_spec(
        {"model": {"name": "m"}, "tiers": {"cpu": {"size": "1Gi"}}, "engines": [{"podTemplate": template}]}
    )
    check_templates(spec, settings)


def test_what_is_taken() -> None:
    check(TAKEN)
    check({})


@pytest.mark.parametrize("field", REFUSED)
def test_what_is_refused(field: str) -> None:
    """With the path and the way out. With Full it is taken."""
    with pytest.raises(InvalidSpec) as caught:
        check(REFUSED[field])
    assert f"spec.engines[0].podTemplate.{field}" in str(caught.value)
    check(REFUSED[field], FULL)


@pytest.mark.parametrize("settings", [RESTRICTED, FULL], ids=["Restricted", "Full"])
@pytest.mark.parametrize("field", SHAPELESS)
def test_what_cannot_be_merged(field: str, settings: Settings) -> None:
    with pytest.raises(InvalidSpec, match="must be a text or a number") as caught:
        check(SHAPELESS[field], settings)
    assert f"spec.engines[0].podTemplate.{field}" in str(caught.value)


@pytest.mark.parametrize(
    "template", [{"spec": 1}, {"spec": {"containers": "x"}}, {"spec": {"containers": [1]}}, {"metadata": []}]
)
def test_other_shapes(template: dict[str, Any]) -> None:
    """Refused, or without effect; never another exception."""
    try:
        check(template)
    except InvalidSpec as refused:
        assert "podTemplate" in str(refused)


def test_the_template_of_a_server_on_each_node() -> None:
    server = {"podTemplate": {"spec": {"hostPID": True}}}
    spec = {"connector": {"type": "LMCacheMP", "server": server}, "tiers": {"cpu": {"size": "1Gi"}}}
    with pytest.raises(InvalidSpec, match=r"spec\.connector\.server\.podTemplate\.spec\.hostPID"):
        check_templates(parse_spec(spec), RESTRICTED)


def test_many_faults_fit_a_condition() -> None:
    with pytest.raises(InvalidSpec, match="and 95 more"):
        check({"spec": {f"x{number}": 1 for number in range(100)}})
