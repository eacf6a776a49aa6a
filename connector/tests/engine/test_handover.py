"""What prefill and decode engines tell each other, and how long one waits for the other: values, no engine."""

from __future__ import annotations

from typing import Any

import pytest

from kvpool_connector.vllm.handover import PREFILLED, Awaited, Role, held_elsewhere, offer, promised


@pytest.mark.parametrize(
    ("role", "params", "expected"),
    [
        (Role.PRODUCER, {"do_remote_decode": True}, {PREFILLED: 70}),
        (Role.PRODUCER, {"do_remote_decode": False}, None),
        (Role.PRODUCER, None, None),
        (Role.BOTH, {"do_remote_decode": True}, None),
        (Role.CONSUMER, {"do_remote_decode": True}, None),
    ],
)
def test_a_prefill_engine_offers_what_a_router_asked_for(
    role: Role, params: dict[str, Any] | None, expected: dict[str, Any] | None
) -> None:
    assert offer(role, params, 70) == expected


@pytest.mark.parametrize("params", [None, {}, {PREFILLED: "70"}, {PREFILLED: None}])
def test_what_is_no_number_promises_nothing(params: dict[str, Any] | None) -> None:
    assert promised(params) == 0


def test_a_promise_is_a_number_of_tokens() -> None:
    assert promised({PREFILLED: 70}) == 70


def test_another_connector_holds_a_prompt_if_it_says_where() -> None:
    assert held_elsewhere({"do_remote_prefill": True, "remote_block_ids": [[1]]})
    assert not held_elsewhere({"do_remote_prefill": True, "remote_block_ids": []})
    assert not held_elsewhere({"do_remote_prefill": False, "remote_block_ids": [[1]]})
    assert not held_elsewhere({PREFILLED: 70})
    assert not held_elsewhere(None)


def test_patience_begins_with_the_first_question_and_ends_once() -> None:
    now = 100.0
    awaited = Awaited(2.0, clock=lambda: now)
    assert awaited.waits("a")
    now = 101.9
    assert awaited.waits("a")
    assert awaited.waits("b")
    now = 102.0
    assert not awaited.waits("a")
    assert not awaited.waits("a"), "asked again, because vLLM has no room"
    assert awaited.late == 1
    assert awaited.waits("b")
    awaited.forget("a")
    assert awaited.waits("a"), "another request by the same name"


def test_only_a_decode_engine_stores_nothing() -> None:
    assert [role.stores for role in Role] == [True, True, False]
