"""The chart, rendered by Helm's own engine."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helm_python import Chart, HelmError, lint

from kvpool_operator.api import API_VERSION, KIND, Settings
from kvpool_operator.desired.names import MANAGED_BY, MANAGED_BY_LABEL
from kvpool_operator.kube import (
    CHILD_KINDS,
    CLAIM,
    ENDPOINT_SLICE,
    EVENT,
    LEASE,
    LLM_SERVICES,
    NAMESPACE,
    POD,
    POOL,
    RAY_CLUSTER,
    WEBHOOKS,
)
from kvpool_operator.observe.api_servers import NAME as NODES_NAME
from kvpool_operator.observe.api_servers import NAMESPACE as NODES_NAMESPACE

CHART = Path(__file__).parents[4] / "charts" / "kvpool-operator"
FURTHER = ("-edit", "-view", "-webhook", "-api-servers", "-lease")
"""Ends of names of roles beside the one for pools."""
DEFAULTS = yaml.safe_load((CHART / "values.yaml").read_text())


@pytest.fixture(scope="module")
def chart() -> Iterator[Chart]:
    with Chart.load(CHART) as loaded:
        yield loaded


def manifests(chart: Chart, values: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    chart.validate_schema(values or {})
    rendered = chart.render(values or {}, name="kvpool", namespace="kvpool-system")
    texts = [text for path, text in sorted(rendered.items()) if not path.endswith("NOTES.txt")]
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


def one(chart: Chart, kind: str, values: dict[str, Any] | None = None) -> dict[str, Any]:
    (found,) = [
        m for m in manifests(chart, values) if m["kind"] == kind and not m["metadata"]["name"].endswith(FURTHER)
    ]
    return found


def settings(chart: Chart, values: dict[str, Any] | None = None) -> Settings:
    return Settings.model_validate(yaml.safe_load(one(chart, "ConfigMap", values)["data"]["settings.yaml"]))


def test_it_passes_helm_lint() -> None:
    report = lint(CHART, strict=True)
    assert [message for message in report["messages"] if message["severity"] > 1] == []
    assert report["errors"] == []


def test_the_settings_file_is_read_by_the_operator_and_has_its_defaults(chart: Chart) -> None:
    made = settings(chart)
    assert made.model_copy(update={"webhook": Settings().webhook}) == Settings()
    webhook = made.webhook.model_dump()
    expected = {"enabled": True, "names": ("kvpool-operator-webhook.kvpool-system.svc",)}
    assert webhook == Settings().webhook.model_dump() | expected


def test_engine_defaults_reach_the_operator(chart: Chart) -> None:
    template = {"spec": {"containers": [{"name": "engine", "volumeMounts": [{"name": "venv", "mountPath": "/venv"}]}]}}
    values = {
        "settings": {
            "engineDefaults": {
                "podTemplate": template,
                "modelPaths": {"org/model": "/models/m"},
                "args": ["--dtype", "float32"],
            }
        }
    }
    defaults = settings(chart, values).engine_defaults
    assert defaults.pod_template == template
    assert defaults.model_paths == {"org/model": "/models/m"}
    assert defaults.args == ("--dtype", "float32")


def test_new_settings_make_a_new_pod(chart: Chart) -> None:
    def annotation(values: dict[str, Any]) -> str:
        return str(one(chart, "Deployment", values)["spec"]["template"]["metadata"]["annotations"])

    assert annotation({}) != annotation({"settings": {"workers": 5}})


def test_the_operators_pod_passes_pod_security_restricted(chart: Chart) -> None:
    pod = one(chart, "Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert all({"configMap", "emptyDir"} & volume.keys() for volume in pod["volumes"])
    for container in pod["containers"]:
        context = container["securityContext"]
        assert (context["allowPrivilegeEscalation"], context["readOnlyRootFilesystem"]) == (False, True)
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert {"requests", "limits"} <= container["resources"].keys()


def rules(chart: Chart, values: dict[str, Any] | None = None) -> dict[tuple[str, str], set[str]]:
    role = one(chart, "Role" if (values or {}).get("watchNamespaces") else "ClusterRole", values)
    return {
        (group, resource): set(rule["verbs"])
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


def test_permissions_are_exactly_what_the_operator_uses(chart: Chart) -> None:
    children = {"get", "list", "watch", "create", "patch", "delete"}
    expected: dict[tuple[str, str], set[str]] = {(kind.group, kind.plural): children for kind in CHILD_KINDS}
    expected[POOL.group, POOL.plural] = {"get", "list", "watch"}
    expected[POOL.group, f"{POOL.plural}/status"] = {"patch"}
    expected[POD.group, POD.plural] = {"list", "watch"}
    expected[CLAIM.group, CLAIM.plural] = {"list", "patch"}
    expected[RAY_CLUSTER.group, RAY_CLUSTER.plural] = {"get"}
    expected[LLM_SERVICES[0].group, LLM_SERVICES[0].plural] = {"get"}
    expected[EVENT.group, EVENT.plural] = {"create"}
    expected[NAMESPACE.group, NAMESPACE.plural] = {"get"}
    assert rules(chart) == expected


def test_the_webhooks_rights_are_over_named_objects(chart: Chart) -> None:
    roles = [
        m for m in manifests(chart) if m["kind"] in ("Role", "ClusterRole") and "-webhook" in m["metadata"]["name"]
    ]
    found = [(rule["resources"], rule.get("resourceNames"), rule["verbs"]) for role in roles for rule in role["rules"]]
    assert found == [
        ([WEBHOOKS.plural], ["kvpool-operator"], ["get", "patch"]),
        (["secrets"], ["kvpool-operator-webhook"], ["get", "patch"]),
        (["secrets"], None, ["create"]),
    ]


def test_the_lease_is_the_one_of_the_settings_and_no_other(chart: Chart) -> None:
    for name in ("kvpool-operator", "other"):
        values = {"fullnameOverride": name}
        (role,) = [m for m in manifests(chart, values) if m["metadata"]["name"] == f"{name}-lease" and "rules" in m]
        assert (role["kind"], role["metadata"]["namespace"]) == ("Role", "kvpool-system")
        found = [(rule["resources"], rule.get("resourceNames"), rule["verbs"]) for rule in role["rules"]]
        assert found == [([LEASE.plural], [name], ["get", "patch"]), ([LEASE.plural], None, ["create"])]
        assert settings(chart, values).election.lease == name
        assert settings(chart, values).namespace == "kvpool-system"


def test_two_replicas_are_rolled_spread_and_drained_one_by_one(chart: Chart) -> None:
    deployment = one(chart, "Deployment")["spec"]
    assert deployment["replicas"] == 2
    update = {"maxUnavailable": 1, "maxSurge": 1}
    assert deployment["strategy"] == {"type": "RollingUpdate", "rollingUpdate": update}
    (container,) = deployment["template"]["spec"]["containers"]
    assert container["lifecycle"] == {"preStop": {"sleep": {"seconds": 3}}}
    labels = deployment["template"]["metadata"]["labels"].items()
    spread = deployment["template"]["spec"]["topologySpreadConstraints"]
    assert {rule["topologyKey"] for rule in spread} == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
    for rule in spread:
        assert rule["whenUnsatisfiable"] == "ScheduleAnyway"
        assert rule["labelSelector"]["matchLabels"].items() <= labels
    budget = one(chart, "PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] == 1
    assert budget["selector"]["matchLabels"].items() <= labels


def test_a_single_replica_can_be_drained(chart: Chart) -> None:
    made = manifests(chart, {"replicas": 1})
    assert "PodDisruptionBudget" not in {m["kind"] for m in made}
    (deployment,) = [m["spec"] for m in made if m["kind"] == "Deployment"]
    assert deployment["replicas"] == 1
    assert deployment["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert "topologySpreadConstraints" not in deployment["template"]["spec"]


def test_the_api_servers_addresses_are_read_from_one_object(chart: Chart) -> None:
    def found(values: dict[str, Any]) -> list[dict[str, Any]]:
        here = [m for m in manifests(chart, values) if m["metadata"].get("namespace") == NODES_NAMESPACE]
        return [rule for manifest in here for rule in manifest.get("rules", ())]

    right = {"apiGroups": [ENDPOINT_SLICE.group], "resources": [ENDPOINT_SLICE.plural]}
    assert found({}) == [{**right, "resourceNames": [NODES_NAME], "verbs": ["get"]}]
    assert found({"settings": {"probes": {"refuseApiServer": False}}}) == []


def test_the_operators_ports_are_reached_and_no_others(chart: Chart) -> None:
    values = {"webhook": {"port": 9999}}
    policy = one(chart, "NetworkPolicy", values)["spec"]
    pod = one(chart, "Deployment", values)["spec"]["template"]
    assert policy["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert policy["policyTypes"] == ["Ingress"]
    ports = [port["containerPort"] for port in pod["spec"]["containers"][0]["ports"]]
    assert policy["ingress"] == [{"ports": [{"protocol": "TCP", "port": port}]} for port in ports]
    (health,) = one(chart, "NetworkPolicy", {"webhook": {"enabled": False}})["spec"]["ingress"]
    assert health["ports"][0]["port"] == 8080


def test_who_reaches_the_operators_ports_is_a_setting(chart: Chart) -> None:
    monitoring = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    control_plane = [{"ipBlock": {"cidr": "10.0.0.0/28"}}]
    values = {"networkPolicy": {"metricsFrom": monitoring, "webhookFrom": control_plane}}
    health, webhook = one(chart, "NetworkPolicy", values)["spec"]["ingress"]
    assert (health["ports"][0]["port"], health["from"]) == (8080, monitoring)
    assert (webhook["ports"][0]["port"], webhook["from"]) == (9443, control_plane)


def test_the_admission_policy_covers_all_that_the_operator_writes(chart: Chart) -> None:
    policy = one(chart, "ValidatingAdmissionPolicy")["spec"]
    covered = {
        (group, version, resource)
        for rule in policy["matchConstraints"]["resourceRules"]
        for group in rule["apiGroups"]
        for version in rule["apiVersions"]
        for resource in rule["resources"]
    }
    assert covered == {(kind.group, kind.version, kind.plural) for kind in (*CHILD_KINDS, CLAIM, LEASE)}
    writes = {"create", "update", "patch", "delete", "deletecollection"}
    elsewhere = {(POOL.group, f"{POOL.plural}/status"), (EVENT.group, EVENT.plural)}
    written = {resource for resource, verbs in rules(chart).items() if verbs & writes}
    own = {(LEASE.group, LEASE.plural)}  # by a Role in the operator's namespace
    assert {(group, resource) for group, _, resource in covered} == (written | own) - elsewhere
    operations = {tuple(rule["operations"]) for rule in policy["matchConstraints"]["resourceRules"]}
    assert operations == {("CREATE", "UPDATE", "DELETE"), ("UPDATE",)}
    assert policy["failurePolicy"] == "Fail"
    binding = one(chart, "ValidatingAdmissionPolicyBinding")["spec"]
    assert binding == {"policyName": "kvpool-operator", "validationActions": ["Deny"]}


def test_the_admission_policy_knows_the_operators_account_and_marks(chart: Chart) -> None:
    policy = one(chart, "ValidatingAdmissionPolicy", {"serviceAccount": {"name": "robot"}})["spec"]
    (condition,) = policy["matchConditions"]
    assert condition["expression"] == "request.userInfo.username == 'system:serviceaccount:kvpool-system:robot'"
    expressions = {variable["name"]: variable["expression"] for variable in policy["variables"]}
    for name in ("willBeMarked", "isMarked"):
        assert expressions[name].endswith(f"labels['{MANAGED_BY_LABEL}'] == '{MANAGED_BY}'")
    group, _, _ = API_VERSION.partition("/")
    assert f"'{group}/'" in expressions["isChild"]
    assert f"'{KIND}'" in expressions["isChild"]
    assert "'kvpool-operator-webhook'" in expressions["isCertificate"]
    assert "request.name == 'kvpool-operator'" in expressions["isLease"]
    assert "request.namespace == 'kvpool-system'" in expressions["isLease"]
    without = one(chart, "ValidatingAdmissionPolicy", {"webhook": {"enabled": False}})["spec"]["variables"]
    assert without[0] == {"name": "isCertificate", "expression": "false"}


def webhooks(chart: Chart, values: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    made = manifests(chart, values)
    (found,) = [m for m in made if m["kind"] == "MutatingWebhookConfiguration"]
    result: list[dict[str, Any]] = found["webhooks"]
    return result


def test_a_webhook_that_fails_stops_nothing(chart: Chart) -> None:
    for webhook in webhooks(chart):
        assert (webhook["failurePolicy"], webhook["reinvocationPolicy"]) == ("Ignore", "IfNeeded")
        assert webhook["sideEffects"] == "None"
        assert webhook["timeoutSeconds"] == 5
        (outside,) = webhook["namespaceSelector"]["matchExpressions"]
        assert (outside["operator"], outside["values"]) == ("NotIn", ["kube-system"])
        assert webhook["clientConfig"]["service"]["name"] == "kvpool-operator-webhook"


def test_the_webhook_reaches_the_operators_port(chart: Chart) -> None:
    (service,) = [m for m in manifests(chart) if m["kind"] == "Service"]
    pod = one(chart, "Deployment", {"webhook": {"port": 9999}})["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports[service["spec"]["ports"][0]["targetPort"]] == 9999
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert container["args"][-2:] == ["--webhook-port", "9999"]


def test_a_url_takes_the_services_place_and_is_in_the_certificate(chart: Chart) -> None:
    values = {"webhook": {"url": "https://10.0.0.1:9443"}, "watchNamespaces": ["a"]}
    for webhook in webhooks(chart, values):
        assert webhook["clientConfig"]["url"].startswith("https://10.0.0.1:9443/")
        assert webhook["namespaceSelector"]["matchExpressions"][1]["values"] == ["a"]
    assert settings(chart, values).webhook.names[-1] == "10.0.0.1"


def test_no_permission_has_a_wildcard(chart: Chart) -> None:
    for manifest in manifests(chart):
        for rule in manifest.get("rules", ()):
            assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
            assert not {"escalate", "bind", "impersonate"} & set(rule["verbs"])


def test_with_namespaces_there_is_a_role_in_each_and_no_cluster_wide_right(chart: Chart) -> None:
    made = manifests(chart, {"watchNamespaces": ["a", "b"]})
    within = ["a", "b", "kvpool-system", "kvpool-system", "default"]
    assert [m["metadata"]["namespace"] for m in made if m["kind"] == "Role"] == within
    assert [m["metadata"]["namespace"] for m in made if m["kind"] == "RoleBinding"] == within
    bound = [m["roleRef"]["name"] for m in made if m["kind"] == "ClusterRoleBinding"]
    assert bound == ["kvpool-operator-webhook"]  # the one right that can't be a namespace's, over one named object
    without = manifests(chart, {"watchNamespaces": ["a", "b"], "webhook": {"enabled": False}})
    assert not [m for m in without if m["kind"] == "ClusterRoleBinding"]
    assert all(m["metadata"]["name"].endswith(("-edit", "-view")) for m in without if m["kind"] == "ClusterRole")
    assert settings(chart, {"watchNamespaces": ["a", "b"]}).watch_namespaces == ("a", "b")


def test_the_crd_comes_with_the_chart_and_stays_without_it(chart: Chart) -> None:
    crd = one(chart, "CustomResourceDefinition")
    assert crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert "CustomResourceDefinition" not in {m["kind"] for m in manifests(chart, {"crds": {"enabled": False}})}


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
        ({"image": {"digest": "latest"}}, "digest"),
        ({"settings": {"workers": 0}}, "workers"),
        ({"settings": {"logLevel": "loud"}}, "logLevel"),
        ({"settings": {"engineDefaults": {"podTemplates": {}}}}, "podTemplates"),
        ({"settings": {"images": {"engine": ""}}}, "engine"),
        ({"watchNamespaces": ["Not_A_Namespace"]}, "watchNamespaces"),
        ({"replicas": 0}, "replicas"),
        ({"replica": 2}, "replica"),
        ({"webhook": {"url": "http://plain"}}, "url"),
        ({"webhook": {"timeoutSeconds": 1}}, "timeoutSeconds"),
        ({"networkPolicy": {"metricsFrom": [{"namespace": "x"}]}}, "metricsFrom"),
    ],
)
def test_a_wrong_value_is_refused_with_its_name(chart: Chart, values: dict[str, Any], named: str) -> None:
    with pytest.raises(HelmError, match=named):
        chart.validate_schema(values)


OTHER: dict[str, Any] = {
    "image.tag": "9",
    "image.digest": "sha256:" + "a" * 64,
    "image.pullPolicy": "Always",
    "imagePullSecrets": [{"name": "x"}],
    "watchNamespaces": ["x"],
    "webhook.url": "https://x",
    "webhook.excludedNamespaces": ["x"],
    "networkPolicy.metricsFrom": [{"podSelector": {}}],
    "networkPolicy.webhookFrom": [{"podSelector": {}}],
    "tolerations": [{"key": "x"}],
    "settings.engineDefaults.args": ["--x"],
    "settings.engineDefaults.env": [{"name": "X", "value": "x"}],
    "settings.engineDefaults.podTemplate": {"spec": {"x": "y"}},
    "settings.storeDefaults.podTemplate": {"spec": {"x": "y"}},
    "settings.logLevel": "DEBUG",
    "settings.podTemplates": "Full",
    "settings.probes.refusedNetworks": ["10.0.0.0/8"],
}


def leaves(values: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def changed(path: str, value: Any) -> dict[str, Any]:
    """Values with another value at one place."""
    if path in OTHER:
        other = OTHER[path]
    elif isinstance(value, bool):
        other = not value
    elif isinstance(value, int):
        other = value + 1
    elif isinstance(value, dict):
        other = {"x": "y"}
    else:
        other = f"{value}x"
    *parents, last = path.split(".")
    result: dict[str, Any] = {last: copy.deepcopy(other)}
    for parent in reversed(parents):
        result = {parent: result}
    return result


@pytest.mark.parametrize(("path", "value"), list(leaves(DEFAULTS)), ids=[path for path, _ in leaves(DEFAULTS)])
def test_every_value_is_used_and_documented(chart: Chart, path: str, value: Any) -> None:
    base = {"rbac": {"create": True}, "serviceAccount": {"annotations": {"a": "b"}}} if "annotations" in path else {}
    assert manifests(chart, changed(path, value)) != manifests(chart, base)
    readme = (CHART / "README.md").read_text()
    assert path in readme or path.split(".", maxsplit=1)[0] in ("resources",)


def test_values_and_schema_agree(chart: Chart) -> None:
    chart.validate_schema(DEFAULTS)


def test_every_object_names_its_namespace(chart: Chart) -> None:
    """What is rendered can be applied without Helm, although one object is in another namespace than the rest."""
    everywhere = ("Cluster", "CustomResource", "ValidatingAdmission", "MutatingWebhook")
    for manifest in manifests(chart):
        assert manifest["kind"].startswith(everywhere) or manifest["metadata"]["namespace"]


def test_names_are_cut_to_what_kubernetes_takes(chart: Chart) -> None:
    for manifest in manifests(chart, {"fullnameOverride": "x" * 63}):
        most = 253 if "Role" in manifest["kind"] else 70  # Deployments and Pods' labels are limited
        assert len(manifest["metadata"]["name"]) <= most
    assert one(chart, "Deployment")["metadata"]["name"] == "kvpool-operator"
    (service,) = [m for m in manifests(chart, {"fullnameOverride": "x" * 63}) if m["kind"] == "Service"]
    assert len(service["metadata"]["name"]) == 63
