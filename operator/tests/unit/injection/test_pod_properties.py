"""Properties of the injection over generated Pods: once is as good as twice, and names stay unique."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kvpool_operator.api import ConflictPolicy, Delivery
from kvpool_operator.injection.patch import diff
from kvpool_operator.injection.pod import inject

from .patches import applied
from .pods import facts, pod

_words = st.sampled_from(["serve", "vllm", "m", "--port", "8000", "--config", "--", "{", "--upstream=vllm:80"])
_command = st.one_of(
    st.none(),
    st.sampled_from(
        [
            ["vllm", "serve"],
            ["python3", "-m", "vllm.entrypoints.openai.api_server"],
            ["python", "-m", "huggingfaceserver"],
            ["bash", "-c"],
            ["sh", "-c", "vllm serve m"],
            ["nginx"],
        ]
    ),
)
_env = st.lists(
    st.one_of(
        st.builds(
            lambda name, value: {"name": name, "value": value},
            st.sampled_from(
                [
                    "PYTHONPATH",
                    "PYTHONHASHSEED",
                    "KVPOOL_CONFIG_FILE",
                    "KVPOOL_CONFLICT_POLICY",
                    "KVPOOL_ON_FAILURE",
                    "A",
                ]
            ),
            st.sampled_from(["", "0", "Multi", "/etc/kvpool/kvpool.yaml", "a:b", "a::", "/opt/kvpool-payload"]),
        ),
        # Made anew each time: applying a patch would change an object that two containers share in both.
        st.builds(lambda: {"name": "PYTHONPATH", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}),
    ),
    max_size=3,
    unique_by=lambda one: one["name"],
)
_memory = st.sampled_from(["8Gi", "1.5Gi", "512M", "1000m", "9e9"])
_resources = st.fixed_dictionaries(
    {},
    optional={
        "requests": st.fixed_dictionaries(
            {}, optional={"memory": _memory, "cpu": st.just("1"), "ephemeral-storage": _memory}
        ),
        "limits": st.fixed_dictionaries({}, optional={"memory": _memory}),
    },
)
_mounts = st.lists(
    st.builds(
        lambda path: {"name": "own", "mountPath": path},
        st.sampled_from(["/dev/shm", "/etc/kvpool", "/data", "/opt/"]),  # noqa: S108
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
        "envFrom": st.sampled_from([[{"configMapRef": {"name": "a"}}], [{"prefix": "X_", "secretRef": {"name": "a"}}]]),
        "livenessProbe": st.just({"httpGet": {"port": 8000}}),
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
    delivery=st.sampled_from(list(Delivery)),
    disk=st.sampled_from([0, 64 << 30]),
    password=st.sampled_from([None, ("s", "password")]),
)


@given(_pods, _facts)
def test_once_is_as_good_as_twice_and_the_patch_says_the_same(body: dict[str, Any], known: Any) -> None:
    once = inject(body, known)
    assert applied(body, diff(body, once.body)) == once.body
    twice = inject(once.body, known)
    assert twice.body == once.body


@given(_pods, _facts)
def test_nothing_is_taken_away_and_no_word_is_changed(body: dict[str, Any], known: Any) -> None:
    after = inject(body, known).body["spec"]["containers"]
    for before, made in zip(body["spec"]["containers"], after, strict=True):
        assert (made.get("command"), made.get("args")) == (before.get("command"), before.get("args"))
        assert before.keys() <= made.keys()
        kept = {one["name"] for one in before.get("env", ())}
        assert kept <= {one["name"] for one in made.get("env", ())}


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
