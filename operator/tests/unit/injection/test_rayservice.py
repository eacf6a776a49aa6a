"""serveConfigV2: what is added, what is left alone, and that the text is stable byte for byte."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kvpool_operator.api import ConflictPolicy
from kvpool_operator.desired.connectors.kvpool import KV_TRANSFER
from kvpool_operator.injection.outcome import Deny, Outcome, Skip
from kvpool_operator.injection.rayservice import inject as inject_by_policy
from kvpool_operator.injection.rayservice import with_connector as with_connector_by_policy
from testkit.patience import promptly

from .pods import LMCACHE, NIXL

TEXT = """\
applications:
- name: llms
  import_path: ray.serve.llm:build_openai_app
  route_prefix: "/"
  args:
    llm_configs:
    - model_loading_config: {model_id: a}
      accelerator_type: 0755
      engine_kwargs:
        max_model_len: 4096
        enforce_eager: yes
    - model_loading_config: {model_id: b}
      started: 1:30
"""
OURS = {**KV_TRANSFER, "kv_connector_extra_config": {"on_failure": "continue"}}


def inject(service: dict[str, Any], policy: ConflictPolicy = ConflictPolicy.SKIP) -> Outcome:
    return inject_by_policy(service, policy)


def with_connector(text: str, policy: ConflictPolicy = ConflictPolicy.SKIP) -> tuple[str, list[str]]:
    return with_connector_by_policy(text, policy)


def engines(text: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load(text)["applications"][0]["args"]["llm_configs"]
    return found


def one(engine: str) -> str:
    return f"applications:\n- args:\n    llm_configs:\n    - {engine}\n"


def test_every_engine_gets_the_connector_and_keeps_what_it_had() -> None:
    text, notes = with_connector(TEXT)
    assert notes == []
    first, second = engines(text)
    assert first["engine_kwargs"]["kv_transfer_config"] == OURS
    assert first["engine_kwargs"]["prefix_caching_hash_algo"] == "sha256_cbor"
    assert first["engine_kwargs"]["max_model_len"] == 4096
    assert second["engine_kwargs"] == {"kv_transfer_config": OURS, "prefix_caching_hash_algo": "sha256_cbor"}
    # Scalars that mean different things to different parsers stay as they were written, and so does the order.
    for line in ("accelerator_type: 0755", "enforce_eager: yes", "started: 1:30", 'route_prefix: "/"', "{model_id: a}"):
        assert line in text
    assert text.index("model_loading_config") < text.index("accelerator_type") < text.index("engine_kwargs")


def test_prefill_and_decode() -> None:
    text = "applications:\n- args:\n    prefill_config: {model: a}\n    decode_config: {engine_kwargs: null}\n"
    arguments = yaml.safe_load(with_connector(text)[0])["applications"][0]["args"]
    assert arguments["prefill_config"]["engine_kwargs"]["kv_transfer_config"] == OURS
    assert arguments["decode_config"]["engine_kwargs"]["kv_transfer_config"] == OURS


@pytest.mark.parametrize(
    ("kwargs", "why", "note"),
    [
        ("{kv_transfer_config: {kv_connector: NixlConnector}}", "ConnectorPresent", "NixlConnector already"),
        ("{kv_transfer_config: '{}'}", "UnreadableConnector", "not a mapping"),
        ("{kv_transfer_config: {1: 2}}", "UnreadableConnector", "not a mapping"),
        (
            "{kv_transfer_config: {kv_connector: MultiConnector, kv_connector_extra_config: {connectors: 3}}}",
            "UnreadableConnector",
            "must be a list",
        ),
        ("{kv_offloading_size: 4}", "ConnectorPresent", "kv_offloading_size"),
        ("{prefix_caching_hash_algo: sha256}", "HashAlgorithm", "sha256_cbor"),
        ("{enable_prefix_caching: off}", "PrefixCachingOff", "enable_prefix_caching"),
        ("[1]", "UnreadableConnector", "not a mapping"),
    ],
)
def test_an_engine_that_is_left_alone(kwargs: str, why: str, note: str) -> None:
    with pytest.raises(Skip, match=note) as caught:
        with_connector(one(f"engine_kwargs: {kwargs}"))
    assert caught.value.why == why
    assert "applications[0].args.llm_configs[0]" in str(caught.value)
    mixed = one(f"engine_kwargs: {kwargs}") + "    - model: b\n"
    text, notes = with_connector(mixed)
    assert len(notes) == 1
    assert engines(text)[0]["engine_kwargs"] == engines(mixed)[0]["engine_kwargs"]
    assert engines(text)[1]["engine_kwargs"]["kv_transfer_config"] == OURS


def test_a_merge_key_is_followed() -> None:
    text = (
        "base: &base {engine_kwargs: {max_model_len: 1}}\n"
        "applications:\n- args:\n    llm_configs:\n    - <<: *base\n      model: a\n    - <<: *base\n      model: b\n"
    )
    for engine in engines(with_connector(text)[0]):
        assert engine["engine_kwargs"]["max_model_len"] == 1
        assert engine["engine_kwargs"]["kv_transfer_config"] == OURS


@pytest.mark.parametrize("existing", ["{kv_connector: KVPoolConnector}", "{kv_connector: MultiConnector, "
    "kv_connector_extra_config: {connectors: [{kv_connector: KVPoolConnector}, {kv_connector: NixlConnector}]}}"])  # fmt: skip
def test_ours_is_left_byte_for_byte(existing: str) -> None:
    text = one(f"engine_kwargs: {{kv_transfer_config: {existing}}}  # a comment")
    assert with_connector(text) == (text, [])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: [", "NotYAML"),
        ("a: 1\n---\nb: 2\n", "NotYAML"),
        ("a: &a [*a]\n" + "[" * 5000, "NotYAML"),
        ("", "NoLLMConfigs"),
        ("applications: []", "NoLLMConfigs"),
        ("applications: [{import_path: a}]", "NoLLMConfigs"),
        ("applications: [{args: {llm_configs: [file.yaml]}}]", "NoLLMConfigs"),
        ("[1, 2]", "NoLLMConfigs"),
        ("applications: {a: b}", "NoLLMConfigs"),
    ],
)
def test_a_text_that_has_nothing_to_change(text: str, reason: str) -> None:
    service = {"metadata": {"name": "x"}, "spec": {"serveConfigV2": text}}
    outcome = inject(service)
    assert outcome.body["spec"] == service["spec"]
    assert outcome.body["metadata"]["annotations"]["kvpool.dev/skip-reason"].startswith(f"{reason}: ")
    assert outcome.warnings
    assert inject(outcome.body).body == outcome.body


WITH = """\
applications:
- args:
    llm_configs:
    - model: a
      engine_kwargs:
        kv_transfer_config:
          kv_connector: %s
          kv_role: kv_consumer
          engine_id: e1
          kv_port: 1:30
          kv_connector_extra_config: {mode: 0755, enabled: yes, path: "/x"}
        max_model_len: 4096
    - model: b
"""
"""One engine with a connector of its own, one without."""


def transfer(text: str, number: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = engines(text)[number]["engine_kwargs"]["kv_transfer_config"]
    return found


@pytest.mark.parametrize("policy", ConflictPolicy)
@pytest.mark.parametrize("connector", ["NixlConnector", "LMCacheConnectorV1"])
def test_a_connector_that_is_there_by_policy(connector: str, policy: ConflictPolicy) -> None:
    text = WITH % connector
    if policy is ConflictPolicy.FAIL:
        with pytest.raises(Deny, match=rf"llm_configs\[0\]: vLLM has the KV connector {connector} already"):
            with_connector(text, policy)
        return
    once, notes = with_connector(text, policy)
    assert with_connector(once, policy)[0] == once
    assert transfer(once, 1) == OURS, "the other engine gets the connector whatever happens to the first"
    if policy is ConflictPolicy.MULTI:
        assert notes == []
        multi = transfer(once)
        theirs = {key: value for key, value in transfer(text).items() if key != "engine_id"}
        assert multi == {
            "kv_connector": "MultiConnector",
            "kv_role": "kv_consumer",
            "kv_load_failure_policy": "recompute",
            "engine_id": "e1",
            "kv_connector_extra_config": {"connectors": [OURS, theirs]},
        }
        # As it was written, for whichever parser reads it.
        assert all(part in once for part in ("kv_port: 1:30", '{mode: 0755, enabled: yes, path: "/x"}'))
    elif policy is ConflictPolicy.REPLACE and connector.startswith("LMCache"):
        assert notes == []
        assert transfer(once) == {**OURS, "kv_role": "kv_consumer"}
    else:
        assert len(notes) == 1
        assert transfer(once) == transfer(text)
    if not notes:
        assert engines(once)[0]["engine_kwargs"]["prefix_caching_hash_algo"] == "sha256_cbor"
        assert once.index("kv_transfer_config") < once.index("max_model_len"), "it stays in its place"


def multi(*inner: dict[str, Any]) -> dict[str, Any]:
    return {"kv_connector": "MultiConnector", "kv_connector_extra_config": {"connectors": list(inner)}}


@pytest.mark.parametrize(
    ("existing", "policy", "expected"),
    [
        (multi(NIXL, LMCACHE), ConflictPolicy.MULTI, ["KVPoolConnector", "NixlConnector", "LMCacheConnectorV1"]),
        (multi(NIXL, LMCACHE), ConflictPolicy.REPLACE, ["KVPoolConnector", "NixlConnector"]),
        (multi(LMCACHE), ConflictPolicy.REPLACE, ["KVPoolConnector"]),
    ],
)
def test_connectors_inside_a_multiconnector(
    existing: dict[str, Any], policy: ConflictPolicy, expected: list[str]
) -> None:
    text = yaml.safe_dump(
        {"applications": [{"args": {"prefill_config": {"engine_kwargs": {"kv_transfer_config": existing}}}}]}
    )
    once, notes = with_connector(text, policy)
    assert notes == []
    assert with_connector(once, policy) == (once, [])
    (application,) = yaml.safe_load(once)["applications"]
    made = application["args"]["prefill_config"]["engine_kwargs"]["kv_transfer_config"]
    inner = made.get("kv_connector_extra_config", {}).get("connectors", [made])
    assert [one["kv_connector"] for one in inner] == expected
    assert inner[0] == OURS


def test_a_connector_that_several_engines_share_by_anchor_and_merge_key() -> None:
    text = (
        "base: &base {kv_transfer_config: &kv {kv_connector: LMCacheConnectorV1, kv_role: kv_both}}\n"
        "more: &more {<<: *kv, kv_role: kv_consumer}\n"
        "applications:\n- args:\n    llm_configs:\n"
        "    - engine_kwargs: {<<: *base, max_model_len: 1}\n    - engine_kwargs: {kv_transfer_config: *kv}\n"
        "    - engine_kwargs: {kv_transfer_config: *more}\n"
    )
    once, _ = with_connector(text, ConflictPolicy.REPLACE)
    assert with_connector(once, ConflictPolicy.REPLACE)[0] == once
    assert [transfer(once, number)["kv_connector"] for number in range(3)] == ["KVPoolConnector"] * 3
    assert [transfer(once, number)["kv_role"] for number in range(3)] == ["kv_both", "kv_both", "kv_consumer"]
    assert yaml.safe_load(once)["base"] == yaml.safe_load(text)["base"]


@pytest.mark.parametrize(
    "kwargs", ["{kv_transfer_config: null}", "{kv_transfer_config: ~, enable_prefix_caching: yes}"]
)
def test_no_connector_in_so_many_words(kwargs: str) -> None:
    assert transfer(with_connector(one(f"engine_kwargs: {kwargs}"))[0]) == OURS


def test_a_refusal_is_for_whoever_writes_the_text_or_the_annotation() -> None:
    service = {
        "metadata": {"annotations": {"kvpool.dev/pool": "demo"}, "finalizers": ["kuberay"]},
        "spec": {"serveConfigV2": WITH % "NixlConnector"},
    }
    refused = inject_by_policy(service, ConflictPolicy.FAIL, {**service, "spec": {"serveConfigV2": TEXT}})
    assert "spec.injection.conflictPolicy is Fail" in str(refused.denied)
    before = {**service, "metadata": {"annotations": {"kvpool.dev/pool": "demo"}}}
    passed = inject_by_policy(service, ConflictPolicy.FAIL, before)
    assert passed.denied is None
    assert passed.body["spec"] == service["spec"]
    assert passed.body["metadata"]["annotations"]["kvpool.dev/skip-reason"].startswith("ConnectorPresent: ")


def test_a_recursive_text_does_no_harm() -> None:
    inject({"metadata": {}, "spec": {"serveConfigV2": "applications: &a [{args: {llm_configs: *a}}]"}})
    inject({"metadata": {}, "spec": {"serveConfigV2": "applications: [&a {<<: *a, args: {llm_configs: [*a]}}]"}})
    looped = one("engine_kwargs: {kv_transfer_config: &a {kv_connector: x, kv_connector_extra_config: *a}}")
    assert "NotYAML" in str(inject({"metadata": {}, "spec": {"serveConfigV2": looped}}).body["metadata"])


def test_a_reason_goes_when_the_text_was_mended() -> None:
    service = {"metadata": {"annotations": {"kvpool.dev/skip-reason": "NotYAML: x"}}, "spec": {"serveConfigV2": TEXT}}
    assert inject(service).body["metadata"]["annotations"] == {}


_scalars = st.one_of(
    st.sampled_from(
        ["yes", "0755", "1:30", "~", "null", "1e3", "2024-01-01", "{{ x }}", "'", '"', "# no", "a: b", "*x"]
    ),
    st.integers(),
    st.booleans(),
    st.none(),
    st.text(max_size=8),
)
_kwargs = st.one_of(
    st.none(),
    st.dictionaries(st.sampled_from(["max_model_len", "dtype", "prefix_caching_hash_algo", "x"]), _scalars, max_size=3),
    st.sampled_from(
        [{"kv_transfer_config": one} for one in (NIXL, LMCACHE, "x", None, {"kv_connector": "MultiConnector"})]
    ),
)
_engine = st.fixed_dictionaries({"model": _scalars}, optional={"engine_kwargs": _kwargs, "runtime_env": _scalars})
_arguments = st.fixed_dictionaries(
    {}, optional={"llm_configs": st.lists(_engine, max_size=3), "prefill_config": _engine, "decode_config": _engine}
)
_documents = st.builds(
    lambda applications, style, width: yaml.safe_dump(
        {"applications": applications}, default_flow_style=style, width=width, sort_keys=False
    ),
    st.lists(st.fixed_dictionaries({"name": _scalars}, optional={"args": _arguments}), max_size=2),
    st.sampled_from([False, None, True]),
    st.sampled_from([20, 80]),
)


@given(_documents, st.sampled_from(ConflictPolicy))
def test_the_result_needs_no_change_whatever_the_policy(text: str, policy: ConflictPolicy) -> None:
    try:
        once, _ = with_connector(text, policy)
    except (Skip, Deny):
        return
    assert with_connector(text, policy)[0] == once
    assert with_connector(once, policy)[0] == once


@given(_documents)
def test_the_result_needs_no_change_and_nothing_else_changed(text: str) -> None:
    try:
        once, _ = with_connector(text)
    except Skip:
        return
    assert with_connector(text)[0] == once
    try:
        assert with_connector(once)[0] == once
    except Skip:
        raise AssertionError("the result itself is refused") from None
    assert _without_ours(yaml.safe_load(once)) == _without_ours(yaml.safe_load(text))


def _without_ours(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: _without_ours(inner) for key, inner in value.items()}
        if kept.get("kv_transfer_config", OURS) in (OURS, None):
            kept.pop("kv_transfer_config", None)
            if kept.get("prefix_caching_hash_algo") == "sha256_cbor":
                del kept["prefix_caching_hash_algo"]
        return {key: inner for key, inner in kept.items() if key != "engine_kwargs" or inner}
    return [_without_ours(inner) for inner in value] if isinstance(value, list) else value


# ---- texts that would take long ------------------------------------------------------------------------------


def bomb(levels: int) -> str:
    """Each level repeats the one before it nine times."""
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x]"]
    lines += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join([*lines, one(f"{{engine_kwargs: {{x: *a{levels - 1}}}}}")])


@pytest.mark.parametrize(
    "text",
    [bomb(9), one("&a {engine_kwargs: *a}"), one("{engine_kwargs: {}}") + "#" * (1 << 20)],
    ids=["aliases", "within itself", "1 MB"],
)
def test_a_text_that_would_take_long_is_left_alone_at_once(text: str) -> None:
    with promptly(1), pytest.raises(Skip, match=r"NotYAML: spec\.serveConfigV2 has"):
        with_connector(text)


def test_aliases_and_merge_keys_of_usual_size_are_read() -> None:
    text = "base: &base {max_model_len: 4096}\n" + one("{engine_kwargs: {<<: *base, a: &l [1, 2], b: *l}}")
    changed, notes = with_connector(text)
    assert notes == []
    (engine,) = engines(changed)
    assert engine["engine_kwargs"]["kv_transfer_config"] == OURS
