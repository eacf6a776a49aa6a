"""Properties of the injection over generated Pods: once is as good as twice, and names stay unique."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kvpool_operator.api import ConflictPolicy
from kvpool_operator.desired.connectors.kvpool import KV_TRANSFER
from kvpool_operator.injection.names import SHM_DIRECTORY
from kvpool_operator.injection.patch import diff
from kvpool_operator.injection.pod import inject

from .patches import applied
from .pods import LMCACHE, NIXL, facts, pod

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
