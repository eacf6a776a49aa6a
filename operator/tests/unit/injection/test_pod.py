"""What a Pod looks like afterwards: tables of Pods, and properties over generated ones."""

from __future__ import annotations

import copy
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvpool_connector.config import parse_quantity
from kvpool_operator.api import ConflictPolicy
from kvpool_operator.desired.connectors.kvpool import KV_TRANSFER
from kvpool_operator.injection import launch
from kvpool_operator.injection.flags import find, structured
from kvpool_operator.injection.names import SHM_DIRECTORY
from kvpool_operator.injection.patch import diff
from kvpool_operator.injection.pod import inject

from .patches import applied
from .pods import KINDS, LMCACHE, NIXL, SIDECAR, TRANSFER, container, facts, pod, serve


def changed(body: dict[str, Any], **changes: Any) -> dict[str, Any]:
    before = copy.deepcopy(body)
    outcome = inject(body, facts(**changes))
    assert body == before, "the argument was changed"
    assert outcome.denied is None, outcome.denied
    assert "kvpool.dev/injected" in outcome.body["metadata"]["annotations"], outcome.warnings
    return outcome.body


def reason(body: dict[str, Any], **changes: Any) -> str:
    outcome = inject(body, facts(**changes))
    annotations = outcome.body["metadata"]["annotations"]
    assert "kvpool.dev/injected" not in annotations
    assert outcome.body["spec"] == body["spec"]
    assert outcome.warnings
    return str(annotations["kvpool.dev/skip-reason"])


def target(body: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = body["spec"]["containers"][launch.find(body).index]
    return found


def environment(one: dict[str, Any]) -> dict[str, Any]:
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in one.get("env", ())}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gets_configuration_seed_and_password(kind: str) -> None:
    body = changed(KINDS[kind])
    one = target(body)
    variables = environment(one)
    assert variables["KVPOOL_CONFIG_FILE"] == "/etc/kvpool/kvpool.yaml"
    assert variables["PYTHONHASHSEED"] == {"secretKeyRef": {"name": "demo-hash-seed", "key": "seed"}}
    assert variables["KVPOOL_ON_FAILURE"] == "continue"
    mounts = {mount["mountPath"]: mount["name"] for mount in one["volumeMounts"]}
    assert mounts["/etc/kvpool"] == "kvpool-config"
    assert mounts["/etc/kvpool-store"] == "kvpool-store-auth"
    volumes = {volume["name"]: volume for volume in body["spec"]["volumes"]}
    assert volumes["kvpool-config"]["configMap"] == {"name": "demo-connector"}
    assert volumes["kvpool-store-auth"]["secret"]["secretName"] == "demo-store-auth"
    assert body["metadata"]["annotations"]["kvpool.dev/injected"] == "team/demo@abc"
    assert body["metadata"]["labels"]["kvpool.dev/consumer"] == "demo"
    untouched = [other for other in KINDS[kind]["spec"]["containers"] if other["name"] != one["name"]]
    assert [other for other in body["spec"]["containers"] if other["name"] != one["name"]] == untouched


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "Ray" not in kind and kind != "shell"])
def test_arguments_are_appended_once(kind: str) -> None:
    before, after = target(KINDS[kind]), target(changed(KINDS[kind]))
    arguments = [*before.get("args", ())]
    assert after["args"][: len(arguments)] == arguments
    assert after.get("command") == before.get("command")
    assert after["args"][len(arguments) :: 2] == ["--kv-transfer-config", "--prefix-caching-hash-algo"]
    assert json.loads(after["args"][len(arguments) + 1]) == KV_TRANSFER
    assert KV_TRANSFER["kv_load_failure_policy"] == "recompute"
    assert after["args"][-1] == "sha256_cbor"


def test_a_shell_script_gets_flags_that_survive_two_readings() -> None:
    one = target(changed(KINDS["shell"]))
    assert one["args"] == target(KINDS["shell"])["args"]
    text = environment(one)["VLLM_ADDITIONAL_ARGS"]
    assert not set(text) & set("'\"{}$`\\")
    assert structured(text.split(), "--kv-transfer-config") == KV_TRANSFER
    assert "--prefix-caching-hash-algo sha256_cbor" in text


def test_a_shell_scripts_own_additional_arguments_stay() -> None:
    body = copy.deepcopy(KINDS["shell"])
    body["spec"]["containers"][0]["env"] = [{"name": "VLLM_ADDITIONAL_ARGS", "value": "--max-model-len 512"}]
    assert environment(target(changed(body)))["VLLM_ADDITIONAL_ARGS"].startswith("--max-model-len 512 --kv-transfer")


@pytest.mark.parametrize("kind", ["Ray head", "Ray worker"])
def test_ray_gets_no_arguments(kind: str) -> None:
    before, after = target(KINDS[kind]), target(changed(KINDS[kind]))
    assert (after.get("command"), after["args"]) == (before.get("command"), before["args"])


def test_memory_grows_by_the_tier_where_it_is_set() -> None:
    resources = {"requests": {"memory": "8Gi", "cpu": "1"}, "limits": {"memory": "10240M", "nvidia.com/gpu": 1}}
    after = target(changed(pod(serve(resources=resources))))["resources"]
    assert after["requests"] == {"memory": "12Gi", "cpu": "1"}
    assert after["limits"].pop("nvidia.com/gpu") == 1
    assert parse_quantity(after["limits"]["memory"]) == 10240 * 10**6 + (4 << 30)
    assert target(changed(KINDS["Ray worker"]))["resources"]["limits"]["memory"] == "12Gi"
    assert "resources" not in target(changed(pod(serve())))


def test_memory_of_the_pod_itself_grows_too() -> None:
    body = pod(serve())
    body["spec"]["resources"] = {"limits": {"memory": "8Gi"}}
    assert changed(body)["spec"]["resources"] == {"limits": {"memory": "12Gi"}}


def test_memory_can_be_kept() -> None:
    keep = {"kvpool.dev/pool": "demo", "kvpool.dev/memory": "keep"}
    resources = {"limits": {"memory": "8Gi"}}
    assert target(changed(pod(serve(resources=resources), annotations=keep)))["resources"] == resources


def test_tensor_parallelism_without_shared_memory_gets_some() -> None:
    for flag in (("--tensor-parallel-size", "2"), ("--tensor_parallel_size=2",), ("-tp", "2")):
        body = changed(pod(serve(*flag)))
        assert {"name": "kvpool-shm", "mountPath": SHM_DIRECTORY} in target(body)["volumeMounts"]
        assert {"name": "kvpool-shm", "emptyDir": {"medium": "Memory"}} in body["spec"]["volumes"]
    own = [{"name": "shm", "mountPath": SHM_DIRECTORY}]
    for untouched in (pod(serve()), pod(serve("--tensor-parallel-size", "2", volumeMounts=own))):
        assert "kvpool-shm" not in str(changed(untouched))


def test_a_disk_tier_has_a_folder_and_external_sentinels_a_password() -> None:
    body = changed(pod(serve()), disk={"sizeLimit": "1Gi"}, sentinel_password=("theirs", "word"))
    mounts = {mount["mountPath"]: mount["name"] for mount in target(body)["volumeMounts"]}
    assert mounts["/var/lib/kvpool"] == "kvpool-disk"
    assert mounts["/etc/kvpool-sentinel"] == "kvpool-sentinel-auth"
    volumes = {volume["name"]: volume for volume in body["spec"]["volumes"]}
    assert volumes["kvpool-disk"]["emptyDir"] == {"sizeLimit": "1Gi"}
    assert volumes["kvpool-sentinel-auth"]["secret"]["items"] == [{"key": "word", "path": "password"}]


def test_no_password_no_volume() -> None:
    assert "kvpool-store-auth" not in str(changed(pod(serve()), password=None))


def test_a_seed_of_the_users_is_replaced() -> None:
    body = changed(pod(serve(env=[{"name": "PYTHONHASHSEED", "value": "0"}, {"name": "A", "value": "b"}])))
    assert environment(target(body))["PYTHONHASHSEED"] == {"secretKeyRef": {"name": "demo-hash-seed", "key": "seed"}}
    assert [one["name"] for one in target(body)["env"]][:2] == ["PYTHONHASHSEED", "A"]


def test_an_init_container_brings_the_connector() -> None:
    body = changed(pod(serve(env=[{"name": "PYTHONPATH", "value": "/own"}])), payload_image="payload:1")
    (init,) = body["spec"]["initContainers"]
    assert init["image"] == "payload:1"
    assert init["securityContext"]["runAsNonRoot"] is True
    assert init["volumeMounts"] == [{"name": "kvpool-payload", "mountPath": "/opt/kvpool-payload"}]
    assert environment(target(body))["PYTHONPATH"] == "/own:/opt/kvpool-payload"
    assert {"name": "kvpool-payload", "emptyDir": {}} in body["spec"]["volumes"]


# ---- a connector that is there already

FORMS = {
    "two words": ["--kv-transfer-config", json.dumps(NIXL)],
    "one word": [f"--kv-transfer-config={json.dumps(NIXL)}"],
    "underscores": ["--kv_transfer_config", json.dumps(NIXL)],
    "underscores, one word": [f"--kv_transfer_config={json.dumps(NIXL)}"],
    "dotted": ["--kv-transfer-config.kv_connector", "NixlConnector", "--kv-transfer-config.kv_role=kv_both"],
    "the beginning of the name": ["--kv-transfer", json.dumps(NIXL)],
}


@pytest.mark.parametrize("form", FORMS)
def test_skip_leaves_it_and_says_so(form: str) -> None:
    text = reason(pod(serve(*FORMS[form])))
    assert text.startswith("ConnectorPresent: ")
    assert "NixlConnector" in text
    assert "spec.injection.conflictPolicy" in text


@pytest.mark.parametrize("form", FORMS)
def test_multi_puts_ours_first(form: str) -> None:
    after = target(changed(pod(serve(*FORMS[form])), conflict_policy=ConflictPolicy.MULTI))
    assert len(find(after["args"], "--kv-transfer-config")) == 1
    config = structured(after["args"], "--kv-transfer-config")
    assert config is not None
    assert config["kv_connector"] == "MultiConnector"
    assert config["kv_connector_extra_config"]["connectors"] == [KV_TRANSFER, NIXL]
    assert config["kv_load_failure_policy"] == "recompute"


def test_multi_joins_a_multi_connector() -> None:
    existing = {"kv_connector": "MultiConnector", "kv_connector_extra_config": {"connectors": [NIXL, LMCACHE]}}
    flag = ["--kv-transfer-config", json.dumps(existing)]
    config = structured(
        target(changed(pod(serve(*flag)), conflict_policy=ConflictPolicy.MULTI))["args"], "--kv-transfer-config"
    )
    assert config is not None
    assert config["kv_connector_extra_config"]["connectors"] == [KV_TRANSFER, NIXL, LMCACHE]


def test_replace_takes_lmcaches_place_and_nobody_elses() -> None:
    flag = ["--kv-transfer-config", json.dumps(LMCACHE)]
    after = target(changed(pod(serve(*flag)), conflict_policy=ConflictPolicy.REPLACE))
    assert structured(after["args"], "--kv-transfer-config") == KV_TRANSFER
    assert "LMCache" not in str(after)
    assert "not for NixlConnector" in reason(pod(serve(*TRANSFER)), conflict_policy=ConflictPolicy.REPLACE)


def test_replace_inside_a_multi_connector() -> None:
    existing = {"kv_connector": "MultiConnector", "kv_connector_extra_config": {"connectors": [LMCACHE, NIXL]}}
    flag = ["--kv-transfer-config", json.dumps(existing)]
    after = target(changed(pod(serve(*flag)), conflict_policy=ConflictPolicy.REPLACE))
    config = structured(after["args"], "--kv-transfer-config")
    assert config is not None
    assert config["kv_connector_extra_config"]["connectors"] == [KV_TRANSFER, NIXL]


def test_fail_refuses_the_pod() -> None:
    outcome = inject(pod(serve(*TRANSFER)), facts(conflict_policy=ConflictPolicy.FAIL))
    assert outcome.denied is not None
    assert "NixlConnector" in outcome.denied


@pytest.mark.parametrize("policy", list(ConflictPolicy))
def test_ours_is_no_conflict(policy: ConflictPolicy) -> None:
    flag = ["--kv-transfer-config", json.dumps(KV_TRANSFER), "--prefix-caching-hash-algo=sha256_cbor"]
    body = pod(serve(*flag))
    assert target(changed(body, conflict_policy=policy))["args"] == target(body)["args"]


# ---- reasons

UNREADABLE = serve("--kv-transfer-config", "{not json")
REASONS: dict[str, tuple[dict[str, Any], str]] = {
    "NoVLLM": (pod(container(command=["nginx"])), "kvpool.dev/container"),
    "NoVLLM, image": (pod(container(image="nginx:1", args=["x"])), "vllm serve"),
    "NoVLLM, name": (pod(serve(), annotations={"kvpool.dev/container": "x"}), "containers are main"),
    "SeveralVLLM": (pod(serve(), {**serve(), "name": "second"}), "main, second"),
    "ShellCommand": (pod(container(command=["sh", "-c", "vllm serve m --port 1"])), "VLLM_ADDITIONAL_ARGS"),
    "ShellCommand, reference": (
        pod(
            container(
                command=["sh", "-c", "vllm serve m $VLLM_ADDITIONAL_ARGS"],
                env=[{"name": "VLLM_ADDITIONAL_ARGS", "valueFrom": {"configMapKeyRef": {"name": "a", "key": "b"}}}],
            )
        ),
        "set its value",
    ),
    "NoArguments": (
        pod(container(image="vllm/vllm-openai:v1")),
        "args of ours would replace",
    ),
    "NotVLLMBackend": (
        pod(container(name="kserve-container", image="kserve/huggingfaceserver:v1", args=["--backend=huggingface"])),
        "--backend",
    ),
    "UnreadableConnector": (pod(UNREADABLE), "JSON object"),
    "HashAlgorithm": (pod(serve("--prefix_caching_hash_algo", "sha256")), "sha256_cbor"),
    "PrefixCachingOff": (pod(serve("--no-enable-prefix-caching")), "--no-enable-prefix-caching"),
    "OwnConfiguration": (pod(serve(env=[{"name": "KVPOOL_CONFIG_FILE", "value": "/x"}])), "KVPOOL_CONFIG_FILE"),
    "NameTaken": (pod(serve(volumeMounts=[{"name": "x", "mountPath": "/etc/kvpool/"}])), "/etc/kvpool"),
    "ConnectorPresent": (pod(serve("--kv-offloading-size", "4")), "--kv-offloading-size"),
    "ConnectorPresent, in a script": (
        pod(container(command=["sh", "-c", f"vllm serve m {TRANSFER[0]} '{TRANSFER[1]}' $VLLM_ADDITIONAL_ARGS"])),
        "can't be changed from outside",
    ),
}


@pytest.mark.parametrize("case", REASONS)
def test_a_reason_names_the_fix(case: str) -> None:
    body, fix = REASONS[case]
    text = reason(body)
    assert text.startswith(case.partition(",")[0] + ": ")
    assert fix in text


def test_a_volume_of_ours_that_is_somebody_elses() -> None:
    body = pod(serve())
    body["spec"]["volumes"] = [{"name": "kvpool-config", "emptyDir": {}}]
    assert reason(body).startswith("NameTaken: the Pod has a volume kvpool-config of its own")


def test_a_reason_goes_when_the_pod_is_injected_after_all() -> None:
    annotations = {"kvpool.dev/pool": "demo", "kvpool.dev/skip-reason": "PoolMissing: x"}
    assert "kvpool.dev/skip-reason" not in changed(pod(serve(), annotations=annotations))["metadata"]["annotations"]


def test_a_pool_name_that_no_label_can_hold() -> None:
    for name in ("-a", "a/b", "x" * 64, "A b", ""):
        labels = changed(pod(serve()), key=("team", name))["metadata"]["labels"]
        assert labels["kvpool.dev/consumer"] == "invalid"


def test_a_pod_of_900_kb() -> None:
    body = pod(serve(env=[{"name": f"V{number}", "value": "x" * 1000} for number in range(900)]), SIDECAR)
    assert len(json.dumps(body)) > 900_000
    began = time.perf_counter()
    after = changed(body)
    patch = diff(body, after)
    seconds = time.perf_counter() - began
    assert len(json.dumps(patch)) < 5000
    assert applied(body, patch) == after
    assert seconds < 0.05


# ---- properties

_words = st.sampled_from(
    [
        "--kv-transfer-config", "--kv_transfer_config=" + json.dumps(NIXL), json.dumps(LMCACHE), json.dumps(KV_TRANSFER),
        "--kv-transfer-config.kv_connector", "NixlConnector", "--prefix-caching-hash-algo", "sha256_cbor", "-tp", "2",
        "--tensor-parallel-size=4", "serve", "vllm", "m", "--port", "8000", "--backend", "huggingface", "--", "{",
        "--no-enable-prefix-caching", "--enable-prefix-caching", "--kv-offloading-size",
    ]
)  # fmt: skip
_command = st.one_of(
    st.none(),
    st.sampled_from(
        [
            ["vllm", "serve"],
            ["python3", "-m", "vllm.entrypoints.openai.api_server"],
            ["python", "-m", "huggingfaceserver"],
            ["bash", "-c"],
            ["sh", "-c", "vllm serve m ${VLLM_ADDITIONAL_ARGS}"],
            ["nginx"],
        ]
    ),
)
_env = st.lists(
    st.one_of(
        st.builds(
            lambda name, value: {"name": name, "value": value},
            st.sampled_from(
                ["PYTHONPATH", "PYTHONHASHSEED", "VLLM_ADDITIONAL_ARGS", "KVPOOL_CONFIG_FILE", "KVPOOL_ON_FAILURE", "A"]
            ),
            st.sampled_from(["", "0", "--port 1", "/etc/kvpool/kvpool.yaml", "a:b", "--kv-transfer-config '{'"]),
        ),
        st.just({"name": "PYTHONPATH", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}),
    ),
    max_size=3,
    unique_by=lambda one: one["name"],
)
_memory = st.sampled_from(["8Gi", "1.5Gi", "512M", "1000m", "9e9"])
_resources = st.fixed_dictionaries(
    {},
    optional={
        "requests": st.fixed_dictionaries({}, optional={"memory": _memory, "cpu": st.just("1")}),
        "limits": st.fixed_dictionaries({}, optional={"memory": _memory}),
    },
)
_mounts = st.lists(
    st.builds(
        lambda path: {"name": "own", "mountPath": path},
        st.sampled_from([SHM_DIRECTORY, "/etc/kvpool", "/data", "/opt/"]),
    ),
    max_size=2,
    unique_by=lambda one: one["mountPath"],
)
_container = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["main", "kserve-container", "ray-head", "proxy"]),
        "image": st.sampled_from(["vllm/vllm-openai:v1", "kserve/huggingfaceserver:v1", "nginx", "kvpool/serving:1"]),
    },
    optional={
        "command": _command.filter(lambda one: one is not None),
        "args": st.lists(_words, max_size=6),
        "env": _env,
        "resources": _resources,
        "volumeMounts": _mounts,
    },
)
_pods = st.builds(
    lambda containers, labels, annotations, resources: {
        **pod(*containers, labels=labels, annotations={"kvpool.dev/pool": "demo", **annotations}),
        "spec": {"containers": containers, **({"resources": resources} if resources else {})},
    },
    st.lists(_container, min_size=1, max_size=3, unique_by=lambda one: one["name"]),
    st.sampled_from([{}, {}, {"ray.io/cluster": "c"}, {"ray.io/cluster": "c", "ray.io/node-type": "head"}]),
    st.sampled_from([{}, {}, {"kvpool.dev/container": "main"}, {"kvpool.dev/memory": "keep"}]),
    _resources,
)
_facts = st.builds(
    facts,
    conflict_policy=st.sampled_from(list(ConflictPolicy)),
    payload_image=st.sampled_from([None, "payload:1"]),
    password=st.sampled_from([None, ("s", "password")]),
)


@given(_pods, _facts)
def test_once_is_as_good_as_twice_and_the_patch_says_the_same(body: dict[str, Any], known: Any) -> None:
    once = inject(body, known)
    assert applied(body, diff(body, once.body)) == once.body
    twice = inject(once.body, known)
    assert twice.body == once.body
    assert twice.denied == once.denied


@given(_pods, _facts)
def test_names_in_a_pod_stay_unique(body: dict[str, Any], known: Any) -> None:
    spec = inject(body, known).body["spec"]
    for entries, key in (
        (spec.get("volumes", ()), "name"),
        (spec.get("initContainers", ()), "name"),
        *((one.get("env", ()), "name") for one in spec["containers"]),
        *((one.get("volumeMounts", ()), "mountPath") for one in spec["containers"]),
    ):
        values = [entry[key] for entry in entries]
        assert len(values) == len(set(values))
