"""Who may take a Lease, with a clock that only tests turn."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from kvpool_operator.api.settings import Election
from kvpool_operator.election import lease
from kvpool_operator.election.lease import Lease, Sighting

SETTINGS = Election()
LEASE = Lease(holder="other", seconds=12, acquired="a", renewed="r1", transitions=3, version="7")


def free_in(sighting: Sighting, now: float, identity: str = "me") -> float:
    return lease.free_in(sighting, identity=identity, seconds=12, now=now)


def body(**spec: Any) -> dict[str, Any]:
    return {"metadata": {"resourceVersion": "7"}, "spec": spec}


def test_read() -> None:
    found = lease.read(
        body(
            holderIdentity="other",
            leaseDurationSeconds=12,
            acquireTime="a",
            renewTime="r1",
            leaseTransitions=3,
        )
    )
    assert found == LEASE


@pytest.mark.parametrize("spec", [{}, None, {"holderIdentity": None}, {"holderIdentity": ""}])
def test_nobody_holds_what_names_no_holder(spec: Any) -> None:
    found = lease.read({"metadata": {"resourceVersion": "7"}, "spec": spec})
    assert free_in(Sighting(found, 100), 100) == 0


def test_none_and_our_own_are_free_at_once() -> None:
    assert free_in(Sighting(None, 100), 100) == 0
    assert free_in(Sighting(LEASE, 100), 100, identity="other") == 0


def test_another_ones_is_free_when_it_was_not_renewed_for_its_duration() -> None:
    seen = Sighting(LEASE, 100)
    assert free_in(seen, 100) == 12
    assert free_in(seen, 111.5) == 0.5
    assert free_in(seen, 112) == 0


def test_the_longer_duration_counts() -> None:
    longer = Sighting(lease.read(body(holderIdentity="other", leaseDurationSeconds=60)), 100)
    assert free_in(longer, 112) == 48
    shorter = Sighting(lease.read(body(holderIdentity="other", leaseDurationSeconds=1)), 100)
    assert free_in(shorter, 101) == 11


def test_a_renewal_begins_the_time_again_and_another_look_does_not() -> None:
    seen = lease.sight(None, LEASE, 100)
    assert lease.sight(seen, LEASE, 105).since == 100
    renewed = lease.read(body(holderIdentity="other", acquireTime="a", renewTime="r2"))
    assert lease.sight(seen, renewed, 105).since == 105


def test_an_annotation_is_no_renewal() -> None:
    seen = lease.sight(None, LEASE, 100)
    annotated = Lease("other", 12, "a", "r1", 3, version="8")
    assert lease.sight(seen, annotated, 105) == Sighting(annotated, 100)


def test_a_deleted_lease_is_not_free_before_its_holder_has_stopped() -> None:
    seen = lease.sight(lease.sight(None, LEASE, 100), None, 105)
    assert free_in(seen, 105) == 7
    assert free_in(lease.sight(None, None, 105), 105) == 0


def test_specs() -> None:
    first = lease.held(None, identity="me", seconds=12, time="t1")
    assert first == {
        "holderIdentity": "me",
        "leaseDurationSeconds": 12,
        "acquireTime": "t1",
        "renewTime": "t1",
        "leaseTransitions": 0,
    }
    renewed = lease.held(lease.read(body(**first)), identity="me", seconds=12, time="t2")
    assert renewed == {**first, "renewTime": "t2"}
    taken = lease.held(LEASE, identity="me", seconds=12, time="t3")
    assert (taken["acquireTime"], taken["leaseTransitions"]) == ("t3", 4)
    assert lease.read(body(**(taken | lease.released("t4")))).holder == ""


@given(
    asked=st.integers(0, 1000),
    answered=st.integers(0, 3),
    looked=st.integers(0, 3),
    skew=st.integers(-(10**6), 10**6),
)
def test_a_leader_has_stopped_before_another_begins(asked: int, answered: int, looked: int, skew: int) -> None:
    """Whatever the clocks of two machines say, and whenever what was asked is answered."""
    stops = asked + SETTINGS.renew_seconds
    renewal = asked + answered
    sighting = lease.sight(None, LEASE, renewal + looked + skew)
    begins = sighting.since + free_in(sighting, sighting.since) - skew
    assert begins - stops >= SETTINGS.lease_seconds - SETTINGS.renew_seconds


@pytest.mark.parametrize("wrong", [{"renewSeconds": 12}, {"pauseSeconds": 8}, {"leaseSeconds": 1}])
def test_settings_by_which_two_could_lead_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Election.model_validate(wrong)
