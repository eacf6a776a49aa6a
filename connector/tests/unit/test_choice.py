"""What becomes of kvpool in an engine that has its configuration in the environment."""

from __future__ import annotations

from typing import Any

import pytest

from kvpool_connector.config import ConfigError
from kvpool_connector.vllm.choice import OURS, Conflict, Given, Policy, State, choose, policy

NIXL: dict[str, Any] = {"kv_connector": "NixlConnector", "kv_role": "kv_producer"}
LMCACHE: dict[str, Any] = {"kv_connector": "LMCacheConnectorV1", "kv_role": "kv_both"}


def multi(*inner: Any, **further: Any) -> dict[str, Any]:
    extra = {"connectors": list(inner)}
    return {"kv_connector": "MultiConnector", "kv_role": "kv_both", "kv_connector_extra_config": extra, **further}


@pytest.mark.parametrize("conflicts", list(Policy))
def test_an_engine_without_a_connector_gets_kvpool(conflicts: Policy) -> None:
    choice = choose(Given(), conflicts)
    assert (choice.state, choice.transfer) == (State.ACTIVE, OURS)


@pytest.mark.parametrize("given", [dict(OURS), multi(dict(OURS), NIXL), multi(NIXL, dict(OURS))])
@pytest.mark.parametrize("conflicts", list(Policy))
def test_one_that_names_kvpool_keeps_what_it_has(given: dict[str, Any], conflicts: Policy) -> None:
    choice = choose(Given(given, hash_algorithm="xxhash", offloading=True), conflicts)
    assert (choice.state, choice.transfer) == (State.ACTIVE, None)


@pytest.mark.parametrize("given", [NIXL, LMCACHE, multi(NIXL, LMCACHE)])
def test_skip_leaves_other_connectors(given: dict[str, Any]) -> None:
    choice = choose(Given(given), Policy.SKIP)
    assert (choice.state, choice.transfer) == (State.SKIPPED, None)
    assert given["kv_connector"] in choice.reason
    assert "KVPOOL_CONFLICT_POLICY" in choice.reason


@pytest.mark.parametrize("given", [NIXL, LMCACHE, multi(NIXL, LMCACHE)])
def test_fail_refuses_them(given: dict[str, Any]) -> None:
    with pytest.raises(Conflict, match=given["kv_connector"]):
        choose(Given(given), Policy.FAIL)


def test_multi_puts_kvpool_first() -> None:
    """vLLM hands its engine's id down to the children, and takes no second one of theirs."""
    choice = choose(Given({**NIXL, "engine_id": "e1"}), Policy.MULTI)
    assert choice.transfer == multi(
        dict(OURS), NIXL, kv_role="kv_producer", kv_load_failure_policy="recompute", engine_id="e1"
    )


def test_multi_keeps_the_order_of_the_others() -> None:
    choice = choose(Given(multi(NIXL, LMCACHE)), Policy.MULTI)
    assert choice.transfer == multi(dict(OURS), NIXL, LMCACHE, kv_load_failure_policy="recompute")


def test_replace_takes_the_place_of_lmcache() -> None:
    given = {**LMCACHE, "kv_role": "kv_consumer", "kv_connector_extra_config": {"lmcache.rank": 3}}
    assert choose(Given(given), Policy.REPLACE).transfer == {**OURS, "kv_role": "kv_consumer"}


def test_replace_inside_a_multi_connector() -> None:
    choice = choose(Given(multi(NIXL, LMCACHE)), Policy.REPLACE)
    assert choice.transfer == multi(dict(OURS), NIXL, kv_load_failure_policy="recompute")
    assert choose(Given(multi(LMCACHE)), Policy.REPLACE).transfer == OURS


@pytest.mark.parametrize("given", [NIXL, multi(NIXL)])
def test_replace_leaves_what_kvpool_cannot_do(given: dict[str, Any]) -> None:
    choice = choose(Given(given), Policy.REPLACE)
    assert (choice.state, choice.transfer) == (State.SKIPPED, None)
    assert "Multi" in choice.reason


@pytest.mark.parametrize("connectors", [None, "all", [1], {"a": 1}])
def test_children_that_cannot_be_read_are_named(connectors: Any) -> None:
    given = {"kv_connector": "MultiConnector", "kv_connector_extra_config": {"connectors": connectors}}
    with pytest.raises(ConfigError, match=r"kv_connector_extra_config\.connectors"):
        choose(Given(given), Policy.MULTI)


def test_keys_of_another_algorithm_would_agree_with_nobodys() -> None:
    choice = choose(Given(hash_algorithm="xxhash"), Policy.MULTI)
    assert choice.state is State.SKIPPED
    assert "--prefix-caching-hash-algo is xxhash" in choice.reason


def test_an_engine_with_vllms_own_offloading() -> None:
    given = Given(offloading=True)
    assert choose(given, Policy.SKIP).state is State.SKIPPED
    with pytest.raises(Conflict, match="--kv-offloading-size"):
        choose(given, Policy.FAIL)


@pytest.mark.parametrize(("word", "meant"), [(None, Policy.SKIP), ("", Policy.SKIP), ("Multi", Policy.MULTI)])
def test_the_policy_of_the_environment(word: str | None, meant: Policy) -> None:
    assert policy(word) is meant


def test_a_policy_that_is_none() -> None:
    with pytest.raises(
        ConfigError, match="KVPOOL_CONFLICT_POLICY='multi': set it to one of Skip, Multi, Replace, Fail"
    ):
        policy("multi")
