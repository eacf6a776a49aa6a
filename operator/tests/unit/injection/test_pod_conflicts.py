"""A Pod with a connector of its own, by conflict policy."""

from __future__ import annotations

import json

import pytest

from kvpool_operator.api import ConflictPolicy
from kvpool_operator.desired.connectors.kvpool import KV_TRANSFER
from kvpool_operator.injection.flags import find, structured
from kvpool_operator.injection.pod import inject

from .injected import changed, reason, target
from .pods import LMCACHE, NIXL, TRANSFER, facts, pod, serve

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


def test_multi_leaves_the_engines_id_to_the_engine() -> None:
    """vLLM hands it down, and does not start with a child that names one itself."""
    flag = ["--kv-transfer-config", json.dumps({**NIXL, "engine_id": "e1"})]
    after = target(changed(pod(serve(*flag)), conflict_policy=ConflictPolicy.MULTI))
    config = structured(after["args"], "--kv-transfer-config")
    assert config is not None
    assert config["engine_id"] == "e1"
    assert config["kv_connector_extra_config"]["connectors"] == [KV_TRANSFER, NIXL]


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
