"""Recognising one's own manifest in what the API server made of it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvpool_operator.apply.compare import HASH_ANNOTATION, holds, sign

WANTED: dict[str, Any] = {
    "kind": "Deployment",
    "metadata": {"name": "a", "annotations": {"k": "v"}},
    "spec": {
        "replicas": 0,
        "containers": [
            {
                "name": "engine",
                "args": ["--a", "b"],
                "env": [{"name": "E", "value": ""}],
                "resources": {"limits": {"cpu": "1500m", "memory": "4096Mi"}},
            }
        ],
        "automount": False,
        "volumes": [{"name": "x", "emptyDir": {}}],
    },
}


def as_the_server_has_it() -> dict[str, Any]:
    live = copy.deepcopy(WANTED)
    live["metadata"]["uid"] = "u"
    container = live["spec"]["containers"][0]
    container["imagePullPolicy"] = "IfNotPresent"
    del container["env"][0]["value"]  # empty values are dropped
    container["resources"]["limits"] = {"cpu": "1.5", "memory": "4Gi"}  # and quantities rewritten
    live["spec"]["containers"].append({"name": "injected"})
    live["status"] = {}
    return live


def test_defaults_rewritten_values_and_what_others_added_are_no_drift() -> None:
    assert holds(as_the_server_has_it(), WANTED)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "replicas"), 3),
        (("spec", "containers", 0, "args"), ["--a", "c"]),
        (("spec", "containers", 0, "args"), ["--a", "b", "--c"]),
        (("spec", "containers", 0, "name"), "other"),
        (("spec", "containers", 0, "resources", "limits", "memory"), "8Gi"),
        (("spec", "volumes"), []),
        (("metadata", "annotations"), {}),
        (("spec", "automount"), True),
    ],
)
def test_a_change_by_hand_is_drift(path: tuple[str | int, ...], value: Any) -> None:
    live = as_the_server_has_it()
    place: Any = live
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert not holds(live, WANTED)


def test_a_secrets_content_is_not_in_its_hash() -> None:
    def signature(kind: str, content: str) -> str:
        manifest = {"kind": kind, "metadata": {"name": "a"}, "data": {"k": content}}
        return str(sign(manifest)["metadata"]["annotations"][HASH_ANNOTATION])

    assert signature("Secret", "one") == signature("Secret", "two")
    assert signature("ConfigMap", "one") != signature("ConfigMap", "two")


JSON = st.recursive(
    st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=3), JSON, max_size=4))
def test_everything_holds_itself(value: dict[str, Any]) -> None:
    assert holds(value, value)
